"""TensorRT-LLM's engines and checkpoints: `trtllm-serve`, where TensorRT-LLM is, behind a guard of ours.

What is relied on of its server stands in flags.toml with where it was read. It gives no log-probabilities of prompts,
and names the tokens of an answer's by their texts, from which no id follows: those are refused.
"""

import asyncio
import random
import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from containers.engines.completions import CompletionsEngine, Loaded
from containers.engines.contract import Candidate, EngineError, Facts, Sampling, Token, UnsupportedError
from containers.engines.server import Port
from containers.engines.tensorrt_llm import guard
from pipeline.backends.tensorrt_llm import commands, place, target
from pipeline.backends.tensorrt_llm.recipe import TensorRtLlmRecipe
from pipeline.compute import Compute
from pipeline.errors import AssayError

NAME = "trtllm-serve"
HOST = "127.0.0.1"
SEEDS = 2**31


class TensorRtLlmEngine(CompletionsEngine):
    """One artifact on TensorRT-LLM."""

    def __init__(
        self,
        artifact: Path,
        recipe: TensorRtLlmRecipe,
        *,
        compute: Compute,
        gpu_memory_fraction: float,
        slots: int,
        context_tokens: int,
    ) -> None:
        super().__init__(
            artifact.absolute(),
            NAME,
            slots=min(slots, recipe.max_batch_size),
            context_tokens=min(context_tokens, recipe.max_sequence_tokens),
        )
        self._recipe, self._compute, self._fraction = recipe, compute, gpu_memory_fraction
        self._scratch: TemporaryDirectory[str] | None = None
        self._began: tuple[place.Place, list[str]] | None = None

    async def start(self) -> Facts:
        """See Engine.start. EngineError also for an artifact of another GPU architecture, naming both."""
        try:
            built_for = target.load(self._artifact)
            if (why := target.mismatch(built_for, self._compute.gpus, place.version())) is not None:
                raise EngineError(f"{self._artifact.name} cannot be served: {why}")
        except AssayError as error:
            raise EngineError(str(error)) from error
        return await super().start()

    async def stop(self) -> None:
        """See Engine.stop."""
        await super().stop()
        if self._began is not None:
            where, command = self._began
            await asyncio.to_thread(where.end, command)  # a container outlives its client
            self._began = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    async def score(self, ids: Sequence[int], candidates: int) -> list[Token]:
        """See Engine.score."""
        raise UnsupportedError("TensorRT-LLM's server gives no log-probabilities of prompts; other formats' engines do")

    async def _launch(self, loaded: Loaded) -> str:
        try:
            where = await asyncio.to_thread(place.find)
        except AssayError as error:
            raise EngineError(str(error)) from error
        self._scratch = TemporaryDirectory(prefix="assay-")
        folder = Path(self._scratch.name)
        port = Port(number=_free_port(), key=secrets.token_hex(32))
        key = folder / "key"
        key.touch(mode=0o600)
        key.write_text(port.key, encoding="utf-8")
        command = where.command(
            words(self._recipe, self._artifact, key, port.number, self._fraction),
            readable=[self._artifact, Path(guard.__file__).parent],
            writable=folder,
            network="host",
        )
        self._began = (where, command)
        await self._server.start(lambda _: command, place.surroundings(), port=port, family=True)
        version = str((await self._server.get("/version"))["version"])
        return f"TensorRT-LLM {version}, {self._recipe.quantization}, tensor parallel {self._recipe.tensor_parallel}"

    def _request(self, prompt: Sequence[int], sampling: Sampling, ends: frozenset[int]) -> dict[str, Any]:
        if sampling.candidates is not None:
            raise UnsupportedError("TensorRT-LLM's server gives no log-probabilities with token ids")
        if sampling.schema is not None:
            raise UnsupportedError("this engine cannot hold an answer to a JSON schema")
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        return {
            "model": "artifact",
            "prompt": list(prompt),
            "max_tokens": sampling.max_tokens,
            **({"top_k": 1} if sampling.temperature == 0 else drawn),
            # Without one, every request draws the same.
            "seed": random.randrange(SEEDS) if sampling.seed is None else sampling.seed % SEEDS,
            "ignore_eos": sampling.ignore_eos,
            "stop_token_ids": [] if sampling.ignore_eos else sorted(ends),
            "stream": True,
            "detokenize": False,
        }

    def _logprobs(
        self, choice: Mapping[str, Any], place: int, count: int, loaded: Loaded
    ) -> tuple[float, tuple[Candidate, ...]]:
        raise AssertionError("none are asked for")


def words(recipe: TensorRtLlmRecipe, artifact: Path, key: Path, port: int, gpu_memory_fraction: float) -> list[str]:
    """Return the guard's command line: trtllm-serve's own behind the guard and its key's file."""
    _, *arguments = commands.serve(recipe, artifact, host=HOST, port=port, gpu_memory_fraction=gpu_memory_fraction)
    return ["python3", guard.__file__, str(key), *arguments]


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listening:
        return int(listening.getsockname()[1])
