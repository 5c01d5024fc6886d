"""A stand-in for the `vllm` program: its flags, routes, replies and failures as flags.toml says, over a made-up model.

It stands alone, as vLLM's own environment does, and takes nothing that flags.toml does not list. STANDIN, a JSON
object in the environment, asks for what happens seldom: see `Wish`. After token t comes `follower(t)`;
log-probabilities fall by a tenth of a nat from one token id to the next.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

VOCABULARY = 4096
EOS = 2
LAST = 50
"""After this one comes end-of-sequence."""
NORMALIZER = math.log(sum(math.exp(-rank / 10) for rank in range(VOCABULARY)))
FLAGS = tomllib.loads((Path(__file__).parents[2] / "containers/engines/vllm/flags.toml").read_text(encoding="utf-8"))
VALUELESS = ("--no-enable-prefix-caching", "--disable-log-stats", "--disable-uvicorn-access-log")


class Wish(NamedTuple):
    """What STANDIN asks for."""

    version: str = FLAGS["tag"].removeprefix("v")
    load_seconds: float = 0.0
    load_error: str | None = None
    """Printed as the engine process's error, and the server ends."""
    token_seconds: float = 0.0
    together: int = 1
    """Tokens in one event."""
    crash_after: int | None = None
    """Tokens of an answer after which the whole server is gone, ..."""
    dead_after: int | None = None
    """... or only its engine process, which the server tells of before it ends itself."""
    seen: str | None = None
    """File for its command line and environment."""


def follower(token: int) -> int:
    """Return the likeliest token after one."""
    return EOS if token == LAST else 100 + token * 7 % 3000


def logprob(after: int, token: int) -> float:
    """Return the log-probability of a token after another."""
    return -((token - follower(after)) % VOCABULARY) / 10 - NORMALIZER


def likeliest(after: int, count: int) -> list[int]:
    """Return the likeliest tokens after one."""
    return [(follower(after) + rank) % VOCABULARY for rank in range(count)]


def parse() -> argparse.Namespace:
    """Read the command line; argparse ends the process for a flag that is not listed."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("folder", type=Path)
    for flag in FLAGS["flags"]:
        if flag.startswith("--"):
            parser.add_argument(flag, action="store_true" if flag in VALUELESS else "store")
    return parser.parse_args()


class RefusalError(Exception):
    """A request that is at fault."""


class StandIn:
    """The server."""

    def __init__(self, options: argparse.Namespace, wish: Wish) -> None:
        self.options, self.wish = options, wish
        self.running = 0
        self.aborting = False

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        try:
            self.check(body)
        except RefusalError as error:
            return web.json_response(failure(str(error), 400), status=400)
        if body.get("stream"):
            return await self.stream(request, body)
        found: list[dict[str, Any] | None] = [None]
        prompt = body["prompt"]
        for before, token in itertools.pairwise(prompt):
            ids = [token, *(id_ for id_ in likeliest(before, body["prompt_logprobs"]) if id_ != token)]
            found.append({str(id_): {"logprob": logprob(before, id_), "rank": 1, "decoded_token": "?"} for id_ in ids})
        choice = {"index": 0, "text": "?", "finish_reason": "length", "prompt_logprobs": found}
        return web.json_response({"object": "text_completion", "choices": [choice]})

    def check(self, body: dict[str, Any]) -> None:
        """Refuse what vLLM would, and every field that nobody has read about."""
        if unknown := body.keys() - FLAGS["request"].keys():
            raise RefusalError(f"fields that flags.toml does not list: {unknown}")
        longest = int(self.options.max_model_len)
        if (asked := len(body["prompt"]) + body["max_tokens"]) > longest:
            raise RefusalError(
                f"This model's maximum context length is {longest} tokens. However, you requested {asked}."
            )
        if max(body["prompt"]) >= VOCABULARY:
            raise RefusalError(f"Token id {max(body['prompt'])} is out of vocabulary")
        most = int(self.options.max_logprobs)
        if max(body.get("logprobs") or 0, body.get("prompt_logprobs") or 0) > most:
            raise RefusalError(f"Requested sample logprobs, which is greater than max allowed: {most}")

    async def stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.running += 1
        try:
            async for event in self.events(body):
                await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await response.write(b"data: [DONE]\n\n")
        finally:
            self.running -= 1
        return response

    async def events(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        if (body.get("structured_outputs") or {}).get("json", {}).get("type") == "no such type":
            yield failure("The provided JSON schema contains features not supported by xgrammar.", 400)
            return
        made: list[int] = []
        before, told, why = body["prompt"][-1], 0, None
        while why is None:
            await asyncio.sleep(self.wish.token_seconds)
            made.append(follower(made[-1] if made else before))
            if len(made) == self.wish.crash_after:
                print("RuntimeError: CUDA error: an illegal memory access was encountered", flush=True)
                os._exit(1)
            if len(made) == self.wish.dead_after:
                print("EngineCore encountered an issue. See stack trace (above) for the root cause.", flush=True)
                asyncio.get_running_loop().call_later(0.2, os._exit, 1)
                yield failure("EngineCore encountered an issue. See stack trace (above) for the root cause.", 500)
                return
            why = self.why(body, made)
            if why or len(made) - told == self.wish.together:
                yield self.event(body, made, told, why)
                told = len(made)

    def why(self, body: dict[str, Any], made: list[int]) -> str | None:
        if self.aborting:
            return "abort"
        if made[-1] in body["stop_token_ids"] or (made[-1] == EOS and not body["ignore_eos"]):
            return "stop"
        return "length" if len(made) == body["max_tokens"] else None

    def event(self, body: dict[str, Any], made: list[int], told: int, why: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "text": "?", "finish_reason": why, "token_ids": made[told:]}
        if told == 0:
            choice["prompt_token_ids"] = body["prompt"]
        if (count := body.get("logprobs")) is not None:
            tokens = [(before, id_) for before, id_ in zip([body["prompt"][-1], *made], made, strict=False)][told:]
            choice["logprobs"] = {
                "tokens": [f"token_id:{id_}" for _, id_ in tokens],
                "token_logprobs": [logprob(before, id_) for before, id_ in tokens],
                "top_logprobs": [
                    {f"token_id:{one}": logprob(before, one) for one in dict.fromkeys([id_, *likeliest(before, count)])}
                    for before, id_ in tokens
                ],
            }
        return {"object": "text_completion", "choices": [choice]}


def failure(message: str, code: int) -> dict[str, Any]:
    """OpenAI's error object, its code a number."""
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": code}}


async def serve(standin: StandIn) -> None:
    """Load, listen, and end on SIGTERM as the flag says."""
    await asyncio.sleep(standin.wish.load_seconds)
    if standin.wish.load_error:
        print(f"(EngineCore pid=1) ERROR 01-31 09:00:00 [core.py:9] ValueError: {standin.wish.load_error}", flush=True)
        print("Traceback (most recent call last):\n" * 30 + "RuntimeError: Engine core initialization failed.")
        sys.exit(1)
    app = web.Application()
    app.router.add_get("/health", lambda _: _reply(web.Response()))
    app.router.add_get("/version", lambda _: _reply(web.json_response({"version": standin.wish.version})))
    app.router.add_get("/running", lambda _: _reply(web.json_response(standin.running)))
    app.router.add_post("/v1/completions", standin.completions)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, standin.options.uds).start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(int(standin.options.shutdown_timeout)):
            while standin.running:
                await asyncio.sleep(0.01)
    standin.aborting = True
    while standin.running:
        await asyncio.sleep(0.01)


async def _reply(response: web.Response) -> web.Response:
    return response


def main() -> None:
    options, wish = parse(), Wish(**json.loads(os.environ.get("STANDIN", "{}")))
    engine = subprocess.Popen(["sleep", "600"])  # the process that holds the GPU
    if wish.seen:
        seen = {"command": sys.argv[1:], "environment": dict(os.environ)} | {
            "server": os.getpid(),
            "engine": engine.pid,
        }
        Path(wish.seen).write_text(json.dumps(seen))
    print("INFO a banner", flush=True)
    try:
        asyncio.run(serve(StandIn(options, wish)))
    finally:
        engine.kill()


if __name__ == "__main__":
    main()
