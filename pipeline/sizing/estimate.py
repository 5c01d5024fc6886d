"""What an artifact will take, computed before it is built: what a recipe's `estimate` returns.

Formulas are a recipe's own; the constants for interpreters and libraries were measured, and say where.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.sizing import cache
from pipeline.sizing.model import Model, Weight

MIB = 2**20

GATEWAY_BYTES = 80_000_000
"""Largest resident set of the gateway's own process: Python 3.11, uvicorn, FastAPI."""

CUDA_BYTES = 600 * MIB
"""What a CUDA context and its libraries' workspaces take of a GPU, whatever the model; from 300 MiB to 1 GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of an artifact when it is served."""

    streams: int = 1
    """Sequences at once: the engine's slots."""
    context_tokens: int = 4096
    """Prompt and answer of one, together: the room that the engine gives each slot."""
    used_tokens: int | None = None
    """How much of it is filled; None is all. For engines that take room as sequences grow."""
    calibration_tokens: int = 0
    """Tokens of all calibration windows: some builds keep every token's activations."""
    gpus: bool = False
    """Weights and cache go to GPUs."""

    @property
    def filled_tokens(self) -> int:
        """Tokens of one sequence when it ends."""
        return self.context_tokens if self.used_tokens is None else min(self.used_tokens, self.context_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """What a build takes at its peak."""

    anonymous_bytes: int
    """Memory that cannot be given back: what must fit."""
    mapped_bytes: int = 0
    """Pages of files besides, which the kernel drops when memory is short; the build is then slower."""
    disk_bytes: int
    """The artifact, and files that are there meanwhile."""

    @property
    def peak_bytes(self) -> int:
        """Largest resident set, where memory is not short."""
        return self.anonymous_bytes + self.mapped_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What gateway and engine take."""

    on_gpus: bool = False
    """Weights, cache and buffers are in the GPUs' memory; else in main memory."""

    weight_bytes: int
    """As the engine holds them, copies for its kernels included."""
    cache_bytes: int
    """Cache of all streams together."""
    overhead_bytes: int
    """Interpreter, libraries, buffers for activations and logits."""
    host_bytes: int = 0
    """What stays in main memory besides, where the rest is on GPUs."""

    @property
    def bytes(self) -> int:
        """All of it, of the memory that the weights are in."""
        return self.weight_bytes + self.cache_bytes + self.overhead_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One artifact, before it is built."""

    weight_bytes: int
    """Bytes of all stored weights: what bits per weight counts."""
    bytes: int
    """Bytes of all files."""
    bits_per_weight: float
    read_bytes: int
    """Weights that one step of the load's streams reads: of experts those that some token goes through."""
    token_read_bytes: int
    """The same for a single stream."""
    cache_token_bytes: int
    """Keys and values of one more token."""
    sequence_bytes: int
    """Cache of one sequence at its end: what each step reads for it."""
    making: Making
    serving: Serving


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What an engine adds to the weights."""

    use: cache.Use
    process_bytes: int
    """Memory of the engine's process without a model: interpreter and libraries, as resident sets count them."""
    work_bytes: int = 0
    """Buffers for activations and logits."""
    copied_bytes: int = 0
    """Weights that are in main memory a second time, as a CPU's kernels want them."""
    takes_gpus: bool = True
    """It uses GPUs where there are some."""


def assemble(
    model: Model, load: Load, *, bits: Callable[[Weight], float], other_bytes: int, runtime: Runtime, making: Making
) -> Estimate:
    """Put an estimate together from the bits that a recipe stores each weight in, and from what its engine adds.

    `other_bytes` are all files but weights. `making.disk_bytes` is what the build leaves or needs beside the artifact.
    """
    stored = {weight: bits(weight) / 8 for weight in model.weights}
    weight_bytes = round(sum(stored.values()))

    def read(streams: int) -> int:
        return round(sum(size * model.share(one, streams) for one, size in stored.items() if not model.unread(one)))

    context = min(load.context_tokens, model.context_tokens or load.context_tokens)
    filled = min(load.filled_tokens, context)
    kept = context if runtime.use.whole else filled
    on_gpus = load.gpus and runtime.takes_gpus
    process = GATEWAY_BYTES + runtime.process_bytes
    return Estimate(
        weight_bytes=weight_bytes,
        bytes=weight_bytes + other_bytes,
        bits_per_weight=8 * weight_bytes / model.parameters,
        read_bytes=read(load.streams),
        token_read_bytes=read(1),
        cache_token_bytes=cache.token_bytes(model.config, runtime.use),
        sequence_bytes=cache.sequence_bytes(model.config, filled, runtime.use),
        making=Making(
            anonymous_bytes=making.anonymous_bytes,
            mapped_bytes=making.mapped_bytes,
            disk_bytes=making.disk_bytes + weight_bytes + other_bytes,
        ),
        serving=Serving(
            on_gpus=on_gpus,
            weight_bytes=weight_bytes + (0 if on_gpus else runtime.copied_bytes),
            cache_bytes=load.streams * cache.sequence_bytes(model.config, kept, runtime.use),
            overhead_bytes=runtime.work_bytes + (CUDA_BYTES if on_gpus else process),
            host_bytes=process if on_gpus else 0,
        ),
    )
