"""What GPTQ and AWQ artifacts take, from shapes alone: as inspected after a build, and as planned before one."""

from typing import Literal

from pipeline.backends.common import stored
from pipeline.sizing.cache import Use
from pipeline.sizing.estimate import Estimate, Load, Making, Runtime, assemble
from pipeline.sizing.model import HEADS, Model, Weight

PROCESS_BYTES = {4: 625_000_000, 8: 715_000_000}
"""A worker with torch, transformers and GPTQModel's kernels before weights: 625 MB with torch's int4 kernel, and 90 MB
more with the one that unpacks (torch 2.13, transformers 5.23, on a CPU)."""

BUILDER_BYTES = 650_000_000
"""GPTQModel's interpreter without a model."""

COPIES: dict[str, tuple[float, float]] = {"gptq": (2.8, 2.0), "awq": (5.5, 5.5)}
"""Copies of the checkpoint's weights, and of one activation of every calibration token in float32, that are in memory
at a build's peak: of the residual stream with GPTQ, of the feed-forward layer's inside with AWQ. Fitted to builds of 7
and 123 million parameters, with 65,536 and 4,096 calibration tokens; within 6 % of both."""


def bits(weight: Weight, *, bits: int, group_size: int, index: bool) -> float:
    """Return what the format takes for one of the checkpoint's tensors if every matrix of every layer is quantized.

    `index` says whether each input column's group is stored (GPTQ).
    """
    if not stored.is_layer_matrix(weight):
        return min(16 * weight.parameters, 8 * weight.bytes)
    columns, rows = weight.shape[-1], weight.rows
    groups = columns // group_size if group_size > 0 else 1
    # Per weight its integer; per group and row a float16 scale and a zero point; per column its group.
    return rows * columns * bits + rows * groups * (16 + bits) + (32 * columns * weight.copies if index else 0)


def dropped(weight: Weight, model: Model) -> bool:
    """Tell whether it is left out: a tied head that the checkpoint stores all the same is written back once."""
    return weight.name.endswith(HEADS) and model.tied


def _unpacked(model: Model) -> int:
    """Return the bytes of every matrix of every layer in bfloat16."""
    return sum(2 * one.parameters for one in model.weights if stored.is_layer_matrix(one))


def estimate(
    model: Model, load: Load, *, method: Literal["gptq", "awq"], width: int, group_size: int, index: bool
) -> Estimate:
    """See Backend.estimate. On CPUs the engine is transformers, which writes latent attention's keys and values out."""

    def of(weight: Weight) -> float:
        return 0.0 if dropped(weight, model) else bits(weight, bits=width, group_size=group_size, index=index)

    weights, activations = COPIES[method]
    widest = model.hidden if method == "gptq" else model.inner
    making = BUILDER_BYTES + weights * model.bytes + activations * 4 * load.calibration_tokens * widest
    unpacked = width != 4 or group_size < 1
    return assemble(
        model,
        load,
        bits=of,
        other_bytes=model.companion_bytes,
        runtime=Runtime(
            use=Use(bits=16, latent=load.gpus),
            process_bytes=PROCESS_BYTES[8 if unpacked else 4],
            # On CPUs the file's pages stay mapped beside the integers that the kernel has packed anew, and the one that
            # unpacks keeps what it unpacked.
            copied_bytes=round(sum(map(of, model.weights)) / 8) + (_unpacked(model) if unpacked else 0),
            work_bytes=4 * load.streams * model.vocabulary_size + (12 * model.hidden * model.inner if unpacked else 0),
        ),
        making=Making(anonymous_bytes=round(making), disk_bytes=0),
    )
