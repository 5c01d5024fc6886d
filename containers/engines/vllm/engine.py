"""GPTQ, AWQ and unquantized checkpoints on NVIDIA GPUs: `vllm serve`, a child process on a UNIX socket.

Every flag, field and behaviour that is relied on stands in flags.toml, with where it was read in vLLM's source.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from containers.engines.completions import ROUTE, CompletionsEngine, Loaded
from containers.engines.contract import Candidate, EngineError, Sampling, Token, UnsupportedError
from containers.engines.sampling import SEEDS
from containers.engines.vllm import program
from pipeline.records import Placement

NAME = "vllm"
MOST_CANDIDATES = 20
"""Log-probabilities at one place; the gateway's clients can ask for no more."""

QUANTIZATIONS = {"gptq": "gptq", "awq": "awq"}
"""From a recipe's backend. vLLM reads bits and groups in config.json; told the method as well, it refuses a folder
whose config.json says another, or none, rather than taking packed weights for plain ones."""

OPTIONS = (
    # Sampling is what each request says, not what generation_config.json suggests; its end-of-sequence tokens count.
    *("--generation-config", "vllm"),
    # As the contract has them: at temperature 1, before anything is cut off.
    *("--logprobs-mode", "raw_logprobs", "--max-logprobs", str(MOST_CANDIDATES)),
    # An answer must depend neither in its last bits nor in its time on what others asked before, and with keys for
    # several clients that time would tell one of another's prompts.
    "--no-enable-prefix-caching",
    *("--load-format", "safetensors", "--disable-log-stats", "--disable-uvicorn-access-log"),
)


class VllmEngine(CompletionsEngine):
    """One artifact on vLLM."""

    _schemas = True

    def __init__(
        self,
        artifact: Path,
        backend: str,
        *,
        placement: Placement,
        gpus: int,
        slots: int,
        context_tokens: int,
        drain_seconds: float,
    ) -> None:
        super().__init__(artifact, NAME, slots=slots, context_tokens=context_tokens)
        self._backend, self._placement, self._gpus = backend, placement, gpus
        self._drain_seconds = drain_seconds

    async def score(self, ids: Sequence[int], candidates: int) -> list[Token]:
        """See Engine.score. vLLM's own figures, from the kernels that answer; it wants room for a token behind them."""
        loaded = self._running()
        if not ids:
            raise UnsupportedError("there are no tokens")
        body = {"prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": candidates}
        (choice,) = (await self._server.post(ROUTE, body))["choices"]
        piece = loaded.streams.piece
        tokens = [Token(ids[0], piece(ids[0]))]
        for id_, found in zip(ids[1:], choice["prompt_logprobs"][1:], strict=True):
            logprobs = {int(key): one["logprob"] for key, one in found.items()}
            tokens.append(Token(id_, piece(id_), logprobs[id_], _likeliest(logprobs, candidates, loaded)))
        return tokens

    def arguments(self, socket: Path, dtype: str, context_tokens: int) -> list[str]:
        """Return the command line behind `vllm serve FOLDER`. No secret is on it: the socket's folder is ours alone."""
        quantization = QUANTIZATIONS.get(self._backend)
        return [
            *("--uds", str(socket), "--served-model-name", "artifact", "--dtype", dtype),
            *(("--quantization", quantization) if quantization else ()),
            *("--tensor-parallel-size", str(self._placement.tensor_parallel)),
            *("--gpu-memory-utilization", f"{self._placement.gpu_memory_fraction:g}"),
            *("--max-model-len", str(context_tokens), "--max-num-seqs", str(self._slots)),
            # Whatever ends all processes at once must not cut off what the gateway lets end.
            *("--shutdown-timeout", str(math.ceil(self._drain_seconds))),
            *OPTIONS,
        ]

    async def _launch(self, loaded: Loaded) -> str:
        wanted = self._placement.tensor_parallel
        if wanted > self._gpus:
            raise EngineError(f"tensor_parallel is {wanted}, and there are {self._gpus} GPUs")
        found = await program.find()

        def command(socket: Path) -> list[str | Path]:
            return [found, "serve", self._artifact, *self.arguments(socket, loaded.dtype, loaded.context_tokens)]

        await self._server.start(command, environment(os.environ), family=True)
        version = str((await self._server.get("/version"))["version"])
        program.check(version)
        return f"vLLM {version}, {loaded.dtype}, tensor parallel {wanted}"

    def _request(self, prompt: Sequence[int], sampling: Sampling, ends: frozenset[int]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": list(prompt),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "ignore_eos": sampling.ignore_eos,
            "stop_token_ids": [] if sampling.ignore_eos else sorted(ends),
            "stream": True,
            "return_token_ids": True,
        }
        if sampling.seed is not None:  # a generator for each request is slower than one for all
            body["seed"] = sampling.seed % SEEDS
        if sampling.candidates is not None:
            body |= {"logprobs": sampling.candidates, "return_tokens_as_token_ids": True}
        if sampling.schema is not None:
            body["structured_outputs"] = {"json": sampling.schema}
        return body

    def _logprobs(
        self, choice: Mapping[str, Any], place: int, count: int, loaded: Loaded
    ) -> tuple[float, tuple[Candidate, ...]]:
        found = choice["logprobs"]
        top = {_id(token): logprob for token, logprob in found["top_logprobs"][place].items()}
        return float(found["token_logprobs"][place]), _likeliest(top, count, loaded)


def environment(outer: Mapping[str, str]) -> dict[str, str]:
    """Leave out what would change the server from outside, and our own packages, which are not those it was built with.

    Nothing is reported to anybody, nothing is looked up, and its processes meet on loopback.
    """
    dropped = ("VLLM_", "PYTHONPATH", "PYTHONHOME", "HOST_IP")
    kept = {name: value for name, value in outer.items() if not name.startswith(dropped)}
    return kept | {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


def _likeliest(logprobs: Mapping[int, float], count: int, loaded: Loaded) -> tuple[Candidate, ...]:
    """Return the `count` likeliest, best first: vLLM puts the token itself among them, likely or not."""
    best = sorted(logprobs.items(), key=lambda one: -one[1])[:count]
    return tuple(Candidate(id_, loaded.streams.piece(id_), logprob) for id_, logprob in best)


def _id(token: str) -> int:
    """Read `token_id:5`."""
    return int(token.partition(":")[2])
