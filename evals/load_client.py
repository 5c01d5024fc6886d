"""Puts a server of OpenAI's API under load and notes when each piece of each answer arrives.

guidellm 0.8.1 keeps the times of an answer's first and last token only, so ITL cannot be had from it. The openai
package spends 160 to 240 µs of processor time on each streamed token, a quarter of a core that the measured engine
then lacks; this client spends 30 to 60.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import aiohttp

from evals.load import Exchange

SILENCE_SECONDS = 600.0
"""Longest wait for the next byte of an answer."""

Track = Callable[[Iterable[bytes]], Iterable[bytes]]


class LoadError(Exception):
    """The server refused, failed, fell silent, or did other work than it was asked for."""


def closed_loop(
    url: str,
    model: str,
    *,
    warmup: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    output_tokens: int,
    concurrency: int,
    key: str | None = None,
    keep_alive: bool = True,
    silence_seconds: float = SILENCE_SECONDS,
    track: Track = iter,
) -> tuple[Exchange, ...]:
    """Answer every prompt of token ids, `concurrency` at a time; return the exchanges of `prompts`.

    Answers are greedy and have exactly `output_tokens` tokens. No two prompts should begin alike: servers keep what
    they worked out of a beginning that they have seen. Without `keep_alive` each request has a connection of its own,
    for servers that close idle ones without a word. LoadError when anything goes wrong: the first failure ends all.
    """

    async def run() -> tuple[Exchange, ...]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=silence_seconds, sock_read=silence_seconds)
        connector = aiohttp.TCPConnector(limit=concurrency, force_close=not keep_alive)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
            client = _Client(session, f"{url}/v1/completions", output_tokens)
            await client.answer_all([_body(model, prompt, output_tokens) for prompt in warmup], concurrency)
            bodies = [_body(model, prompt, output_tokens) for prompt in prompts]
            return await client.answer_all(track(bodies), concurrency)

    return asyncio.run(run())


def _body(model: str, prompt: Sequence[int], output_tokens: int) -> bytes:
    """Write a request; before the clock runs, since that is no part of the wait."""
    return json.dumps(
        {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()


class _Client:
    """Streams that share one session."""

    def __init__(self, session: aiohttp.ClientSession, url: str, output_tokens: int) -> None:
        self._session, self._url, self._output_tokens = session, url, output_tokens

    async def answer_all(self, bodies: Iterable[bytes], concurrency: int) -> tuple[Exchange, ...]:
        """Let each stream send the next request as soon as it has its answer, until none is left."""
        exchanges: list[Exchange] = []
        waiting = iter(bodies)
        began = time.perf_counter()

        async def stream() -> None:
            for body in waiting:
                exchanges.append(await self._answer(body, began))

        streams = [asyncio.create_task(stream()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*streams)
        finally:
            for one in streams:
                one.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        return tuple(exchanges)

    async def _answer(self, body: bytes, began: float) -> Exchange:
        try:
            start = time.perf_counter() - began
            async with self._session.post(self._url, data=body) as response:
                if response.status != 200:
                    raise LoadError(f"the server answered {response.status}: {_words(await response.text())}")
                return await self._read(response, start, began)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise LoadError(f"the server hung up or fell silent: {type(error).__name__}: {error}") from error

    async def _read(self, response: aiohttp.ClientResponse, start: float, began: float) -> Exchange:
        chunks: list[float] = []
        usage: dict[str, int] = {}
        end = None
        async for event, at in _events(response):
            if event is None:
                end = at - began
                continue
            if "error" in event:
                raise LoadError(f"the server failed in the middle of an answer: {_words(json.dumps(event))}")
            usage = event.get("usage") or usage
            # A piece that only says why the answer ended holds no token; one without text may: half a character.
            if any(choice["text"] or not choice["finish_reason"] for choice in event["choices"]):
                chunks.append(at - began)
        if end is None:
            raise LoadError("the server ended an answer in the middle")
        made = usage.get("completion_tokens", 0)
        if made != self._output_tokens or not chunks:
            raise LoadError(f"the server's usage tells of {made} tokens, {self._output_tokens} were asked for")
        return Exchange(
            start_seconds=start,
            chunk_seconds=tuple(chunks),
            end_seconds=end,
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=made,
        )


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[dict[str, Any] | None, float]]:
    """Yield server-sent events and when their last byte came; None is the end mark."""
    rest = b""
    async for data in response.content.iter_any():
        at = time.perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                text = line[5:].strip()
                try:
                    yield None if text == b"[DONE]" else json.loads(text), at
                except ValueError as error:
                    raise LoadError(f"the server sent what is no JSON: {text[:200]!r}") from error


def _words(body: str) -> str:
    """Find an error's code and message in OpenAI's error object; anything else is quoted."""
    try:
        error = json.loads(body)["error"]
        return f"{error.get('code')}: {error['message']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:300]
