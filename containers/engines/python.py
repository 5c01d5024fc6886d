"""The gateway's end of a worker: an Engine over a socket."""

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from containers.engines.child import Child
from containers.engines.contract import Candidate, EngineError, Facts, Sampling, Token, UnsupportedError
from pipeline.compute import Compute

LINE_BYTES = 2**30
"""Longest message: log-probabilities of a long prompt with many candidates."""


class PythonEngine:
    """An artifact in a worker process: onnxruntime, transformers, and llama.cpp's bindings where they only score."""

    def __init__(self, artifact: Path, *, compute: Compute, slots: int, context_tokens: int) -> None:
        runs_on = ("--device", compute.device, "--threads", compute.threads)
        self._arguments = [artifact, *runs_on, "--slots", slots, "--context", context_tokens]
        self._child: Child | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._replies: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._keys = itertools.count()

    async def start(self) -> Facts:
        """See Engine.start."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "containers.engines.worker", *map(str, self._arguments)]
            self._child = await Child.start(
                [*command, "--socket", str(theirs.fileno())],
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
                pass_fds=(theirs.fileno(),),
            )
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES)
        try:
            line = await reader.readline()
            if not line:
                raise EngineError(f"the engine {await self._child.died()}")
        except BaseException:
            await self.stop()
            raise
        self._reading = asyncio.create_task(self._read(reader))
        return Facts(**json.loads(line)["facts"])

    async def stop(self) -> None:
        """See Engine.stop."""
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()
        if self._child is not None:
            await self._child.kill()
        self._hang_up("the engine was stopped")
        self._child = self._writer = self._reading = None

    async def died(self) -> str:
        """See Engine.died."""
        assert self._child is not None, "not started"
        return await self._child.died()

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Token, None]:
        """See Engine.generate."""
        if sampling.schema is not None:
            raise UnsupportedError("this engine cannot hold an answer to a JSON schema")
        key, replies = self._send(generate=list(prompt), sampling=asdict(sampling))
        try:
            while "end" not in (reply := await self._next(replies)):
                yield _token(reply["token"])
        finally:
            if self._replies.pop(key, None) is not None and self._writer is not None:
                self._write({"cancel": key})

    async def score(self, ids: Sequence[int], candidates: int) -> list[Token]:
        """See Engine.score."""
        return [_token(token) for token in await self._ask(score=list(ids), candidates=candidates)]

    async def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """See Engine.tokenize."""
        return list(await self._ask(encode=text, add_special=add_special))

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See Engine.detokenize."""
        return str(await self._ask(decode=list(ids)))

    async def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> list[int]:
        """See Engine.render."""
        return list(await self._ask(render=list(messages), add_generation_prompt=add_generation_prompt))

    async def _ask(self, **message: Any) -> Any:
        key, replies = self._send(**message)
        try:
            return (await self._next(replies))["result"]
        finally:
            if self._replies.pop(key, None) is not None and "score" in message and self._writer is not None:
                self._write({"cancel": key})

    def _send(self, **message: Any) -> tuple[int, "asyncio.Queue[dict[str, Any]]"]:
        if self._writer is None:
            raise EngineError("the engine is not running")
        key = next(self._keys)
        replies: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._replies[key] = replies
        self._write({"key": key, **message})
        return key, replies

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def _next(self, replies: "asyncio.Queue[dict[str, Any]]") -> dict[str, Any]:
        reply = await replies.get()
        if "gone" in reply:
            raise EngineError(reply["gone"])
        if "unsupported" in reply:
            raise UnsupportedError(reply["unsupported"])
        return reply

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                reply = json.loads(line)
                if (replies := self._replies.get(reply["key"])) is not None:
                    replies.put_nowait(reply)
                    if "token" not in reply:
                        del self._replies[reply["key"]]
        assert self._child is not None
        assert self._writer is not None
        self._writer.close()
        self._writer = None  # what is asked for from now on would wait for ever
        self._hang_up(f"the engine {await self._child.died()}")

    def _hang_up(self, why: str) -> None:
        for replies in self._replies.values():
            replies.put_nowait({"gone": why})
        self._replies.clear()


def _token(fields: Sequence[Any]) -> Token:
    id_, text, logprob, candidates = fields
    return Token(id_, text, logprob, tuple(Candidate(*one) for one in candidates))
