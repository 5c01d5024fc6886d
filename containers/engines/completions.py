"""Servers that take and give token ids over OpenAI's completions: what vLLM's engine and TensorRT-LLM's share.

Their own tokenizers, templates and detokenizers are left alone: text is made here, by the code that makes it for the
engines in Python, so a token looks the same whatever runs the artifact, and ids are those that the artifact's record
was checked with.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from containers.engines.contract import Candidate, EngineError, Facts, Sampling, Token, UnsupportedError
from containers.engines.server import Server, refusal
from containers.engines.text import Text
from pipeline.checkpoints import layout
from pipeline.checkpoints.config import context_tokens, eos_ids, vocabulary_size
from pipeline.errors import CheckpointError

ROUTE = "/v1/completions"
DONE = b"[DONE]"
T = TypeVar("T")


class Loaded(NamedTuple):
    """What is known of an artifact from its files, the weights left out."""

    streams: Text
    """Makes the text of answers, on the event loop."""
    prompts: Text
    """Reads what clients send, on a thread: a long text would hold up everybody's tokens. Tokenizers are not to be
    used by two threads at once."""
    context_tokens: int
    vocabulary_size: int
    dtype: str
    """As config.json names it: what is computed in."""
    ends: frozenset[int]
    """Tokens that end an answer."""


class CompletionsEngine:
    """An artifact with the checkpoint's tokenizer files, served by a process that speaks this protocol.

    A subclass starts its server, writes a request, and reads log-probabilities.
    """

    def __init__(self, artifact: Path, name: str, *, slots: int, context_tokens: int) -> None:
        self._artifact, self._slots, self._context = artifact, slots, context_tokens
        self._server = Server(name)
        self._loaded: Loaded | None = None
        self._thread: ThreadPoolExecutor | None = None

    async def start(self) -> Facts:
        """See Engine.start."""
        self._thread = ThreadPoolExecutor(1)
        try:
            self._loaded = loaded = await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
            runtime = await self._launch(loaded)
        except CheckpointError as error:
            raise EngineError(str(error)) from error
        eos = loaded.streams.eos_id
        return Facts(
            runtime=runtime,
            context_tokens=loaded.context_tokens,
            vocabulary_size=loaded.vocabulary_size,
            bos_id=loaded.streams.bos_id,
            eos_id=eos if eos is not None else min(loaded.ends, default=None),
            slots=self._slots,
            schemas=self._schemas,
        )

    async def stop(self) -> None:
        """See Engine.stop."""
        await self._server.stop()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        self._thread = self._loaded = None

    async def died(self) -> str:
        """See Engine.died."""
        return await self._server.died()

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Token, None]:
        """See Engine.generate. One event may bring several tokens, or none."""
        loaded = self._running()
        if not prompt:
            raise UnsupportedError("there are no tokens")
        body = self._request(prompt, sampling, loaded.ends)
        text = loaded.streams.stream(prompt)
        async with contextlib.aclosing(self._choices(body)) as choices:
            async for choice in choices:
                ids = choice.get("token_ids") or []
                why = choice.get("finish_reason")
                if why == "stop" and ids and ids[-1] in loaded.ends:
                    ids = ids[:-1]
                for place, id_ in enumerate(ids):
                    logprob, candidates = (
                        self._logprobs(choice, place, sampling.candidates, loaded)
                        if sampling.candidates is not None
                        else (None, ())
                    )
                    yield Token(id_, text.add(id_), logprob, candidates)
                if why in ("stop", "length"):
                    return
                if why is not None:
                    raise EngineError(f"{self._server.name} ended an answer: {why}")
        raise EngineError(f"{self._server.name} broke an answer off")

    async def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """See Engine.tokenize."""
        return await self._read(lambda tokenizer: tokenizer.encode(text, add_special))

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See Engine.detokenize."""
        size = self._running().vocabulary_size
        if ids and (min(ids) < 0 or max(ids) >= size):
            raise UnsupportedError(f"token ids go from 0 to {size - 1}; {min(ids)} to {max(ids)} came")
        return await self._read(lambda tokenizer: tokenizer.decode(ids))

    async def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> list[int]:
        """See Engine.render."""
        return await self._read(lambda tokenizer: tokenizer.render(messages, add_generation_prompt))

    _schemas = False
    """Facts.schemas."""

    async def _launch(self, loaded: Loaded) -> str:
        """Start the server; return its name and version."""
        raise NotImplementedError

    def _request(self, prompt: Sequence[int], sampling: Sampling, ends: frozenset[int]) -> dict[str, Any]:
        """Write a request in the server's words."""
        raise NotImplementedError

    def _logprobs(
        self, choice: Mapping[str, Any], place: int, count: int, loaded: Loaded
    ) -> tuple[float, tuple[Candidate, ...]]:
        """Read the log-probability of one token of an event, and the `count` likeliest ones there."""
        raise NotImplementedError

    def _load(self) -> Loaded:
        folder, name = self._artifact, str(self._artifact)
        config = layout.read_json(folder / layout.CONFIG, name)
        streams = Text(folder)
        known = () if streams.eos_id is None else (streams.eos_id,)
        return Loaded(
            streams=streams,
            prompts=Text(folder),
            context_tokens=min(self._context, context_tokens(config, folder, name)),
            vocabulary_size=vocabulary_size(config, name),
            dtype=str(config.get("dtype", config.get("torch_dtype", "auto"))),
            ends=frozenset((*eos_ids(config, folder, name), *known)),  # servers always end at the tokenizer's as well
        )

    def _running(self) -> Loaded:
        if self._loaded is None:
            raise EngineError("the engine is not running")
        return self._loaded

    async def _read(self, work: Callable[[Text], T]) -> T:
        tokenizer = self._running().prompts
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, tokenizer)

    async def _choices(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the one choice of each event. UnsupportedError or EngineError for an event that is an error."""
        async with contextlib.aclosing(self._server.lines(ROUTE, body)) as lines:
            async for line in lines:
                if not line.startswith(b"data:") or (data := line[5:].strip()) == DONE:
                    continue
                event = json.loads(data)
                if "choices" not in event:
                    raise refusal(_code(event), event)
                for choice in event["choices"]:
                    yield choice


def _code(event: Mapping[str, Any]) -> int:
    """Read an error's HTTP status, which an event in a stream that began well carries itself."""
    error = event.get("error", event)
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500
