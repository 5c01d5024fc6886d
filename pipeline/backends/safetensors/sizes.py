"""What a checkpoint in one 16-bit dtype takes: every float in 16 bits, whatever it was stored in."""

from pipeline.checkpoints.weights import NAMES
from pipeline.sizing.cache import Use
from pipeline.sizing.estimate import MIB, Estimate, Load, Making, Runtime, assemble
from pipeline.sizing.model import Model, Weight

PROCESS_BYTES = 470_000_000
"""A worker with torch and transformers before weights (torch 2.13, transformers 5.23, on a CPU)."""

CONVERTER_BYTES = 400 * MIB
"""Memory of an interpreter with torch; files are converted a block at a time."""


def bits(weight: Weight) -> int:
    """Return what the artifact takes for one of the checkpoint's tensors: integers stay as they are."""
    return 16 * weight.parameters if weight.dtype in NAMES else 8 * weight.bytes


def estimate(model: Model, load: Load) -> Estimate:
    """See Backend.estimate. vLLM on GPUs keeps latent attention's compressed form, transformers on CPUs does not."""
    return assemble(
        model,
        load,
        bits=bits,
        other_bytes=model.companion_bytes,
        runtime=Runtime(
            use=Use(bits=16, latent=load.gpus),
            process_bytes=PROCESS_BYTES,
            work_bytes=4 * load.streams * model.vocabulary_size,
        ),
        making=Making(anonymous_bytes=CONVERTER_BYTES, disk_bytes=0),
    )
