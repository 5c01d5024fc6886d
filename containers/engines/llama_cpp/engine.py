"""GGUF on llama-server, a child process on a UNIX socket.

Its native completion endpoint is used, which takes and gives token ids; the OpenAI shapes are the gateway's, the same
for every engine. The server cannot score a prompt (it ignores `echo`), so that is done by llama.cpp's bindings in a
worker, on the same memory-mapped file, started by the first request that needs it.
"""

import asyncio
import json
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from containers.engines.contract import UNTOLD, Candidate, EngineError, Facts, Sampling, Token
from containers.engines.python import PythonEngine
from containers.engines.server import Server, words
from pipeline.compute import Compute
from pipeline.toolchains import llama_cpp

OPTIONS = (
    *("--jinja", "--no-ui", "--no-slots", "--offline", "--log-verbosity", "1", "--cache-ram", "0", "--fit", "off"),
    *("--flash-attn", "on"),
)
"""As evaluation runs the file. No cache of old prompts in main memory: it would grow to gigabytes."""

SEEDS = 2**31

FINAL_FIELDS = ["stop", "stop_type", "tokens_predicted"]
"""Fields that are asked for of the last event, which otherwise repeats the whole prompt and all settings."""


class LlamaCppEngine:
    """One GGUF file, served."""

    def __init__(self, artifact: Path, file: Path, *, compute: Compute, slots: int, context_tokens: int) -> None:
        self._file, self._compute, self._slots, self._context = file, compute, slots, context_tokens
        self._scorer = PythonEngine(artifact, compute=compute, slots=0, context_tokens=context_tokens)
        self._scorer_facts: Facts | None = None
        self._starting = asyncio.Lock()
        self._server = Server("llama-server")

    async def start(self) -> Facts:
        """See Engine.start."""
        await self._server.start(self._command, _environment())
        props = await self._server.get("/props")
        return Facts(
            runtime=f"llama.cpp of llama-cpp-python {llama_cpp.find().version}",
            context_tokens=int(props["default_generation_settings"]["n_ctx"]),
            vocabulary_size=await self._vocabulary_size(),
            bos_id=await self._special(props.get("bos_token")),
            eos_id=await self._special(props.get("eos_token")),
            slots=self._slots,
            schemas=True,
        )

    async def stop(self) -> None:
        """See Engine.stop."""
        await self._scorer.stop()
        self._scorer_facts = None
        await self._server.stop()

    async def died(self) -> str:
        """See Engine.died."""
        return await self._server.died()

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Token, None]:
        """See Engine.generate.

        llama-server tells of no token that leaves a character incomplete: the next one then stands for both. A token
        without text is kept until the next event says whether it was end-of-sequence. Where the answer ends before the
        character does, only the last event's count tells of its tokens.
        """
        known, kept = 0, None
        async for event in self._events(_request(prompt, sampling)):
            if event["stop"]:
                untold, ended = event["tokens_predicted"] - known, event["stop_type"] == "eos"
                if kept is not None and (untold or not ended):
                    yield kept
                if untold > ended:
                    yield Token(UNTOLD, "", tokens=untold - ended)
                return
            if kept is not None:
                yield kept
                kept = None
            if event["tokens_predicted"] == known:
                continue
            token = _token(event, event["tokens_predicted"] - known)
            known = event["tokens_predicted"]
            if token.text:
                yield token
            else:
                kept = token

    async def score(self, ids: Sequence[int], candidates: int) -> list[Token]:
        """See Engine.score."""
        async with self._starting:
            if self._scorer_facts is None:
                self._scorer_facts = await self._scorer.start()
        try:
            return await self._scorer.score(ids, candidates)
        except EngineError:
            self._scorer_facts = None  # the next request starts it again; llama-server goes on meanwhile
            await self._scorer.stop()
            raise

    async def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """See Engine.tokenize."""
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return list((await self._server.post("/tokenize", body))["tokens"])

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See Engine.detokenize."""
        return str((await self._server.post("/detokenize", {"tokens": list(ids)}))["content"])

    async def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> list[int]:
        """See Engine.render."""
        body = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        prompt = (await self._server.post("/apply-template", body))["prompt"]
        return await self.tokenize(prompt, add_special=True)

    def _command(self, address: Path) -> list[str | Path]:
        toolchain = llama_cpp.find()
        sizes = (
            *("--ctx-size", self._slots * self._context, "--parallel", self._slots),
            *("--threads", self._compute.threads, "-ngl", toolchain.gpu_layers(self._compute)),
        )
        return [toolchain.tool("llama-server"), "--model", self._file, "--host", address, *map(str, sizes), *OPTIONS]

    async def _vocabulary_size(self) -> int:
        (model,) = (await self._server.get("/v1/models"))["data"]
        return int(model["meta"]["n_vocab"])

    async def _special(self, text: str | None) -> int | None:
        """Return the id of a special token that the server names by its text."""
        if not text:
            return None
        ids = await self.tokenize(text, add_special=False)
        return ids[0] if len(ids) == 1 else None

    async def _events(self, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async for line in self._server.lines("/completion", body):
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
            elif line.startswith(b"error: "):
                raise EngineError(f"llama-server: {words(json.loads(line[7:]))}")


def _request(prompt: Sequence[int], sampling: Sampling) -> dict[str, Any]:
    """Write a request in llama-server's words, its own samplers off but the two that every engine has."""
    body: dict[str, Any] = {
        "prompt": list(prompt),
        "n_predict": sampling.max_tokens,
        "stream": True,
        "samplers": ["temperature", "top_p"],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": random.randrange(SEEDS) if sampling.seed is None else sampling.seed % SEEDS,
        "ignore_eos": sampling.ignore_eos,
        "response_fields": FINAL_FIELDS,
    }
    if sampling.candidates is not None:
        body["n_probs"] = max(1, sampling.candidates)
    if sampling.schema is not None:
        body["json_schema"] = sampling.schema
    return body


def _token(event: Mapping[str, Any], tokens: int) -> Token:
    id_ = event["tokens"][0]
    if not (found := event.get("completion_probabilities")):
        return Token(id_, event["content"], tokens=tokens)
    top = tuple(Candidate(one["id"], one["token"], one["logprob"]) for one in found[0]["top_logprobs"])
    return Token(id_, event["content"], found[0]["logprob"], top, tokens)


def _environment() -> dict[str, str]:
    """Leave out what would change the server's options from outside."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
