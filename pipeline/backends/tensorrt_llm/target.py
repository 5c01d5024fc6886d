"""What an artifact was built with and for: an engine runs on no other GPU architecture, and with no other version."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.backends.tensorrt_llm.support import Mode
from pipeline.errors import MeasurementError, StorageError
from pipeline.records import Gpu, Record

FILE = "target.json"
"""In an artifact's folder, so that whoever serves it can tell without the pipeline's records."""


class Target(Record):
    """The machine and the tools of a build, as they were seen from inside."""

    kind: Literal["tensorrt_llm"] = "tensorrt_llm"
    mode: Mode
    gpu: str
    """Name of the first."""
    compute_capability: str
    driver: str
    tensor_parallel: int
    tensorrt_llm: str
    tools: dict[str, str]
    """Name and version of what lies below: tensorrt, nvidia-modelopt, torch, transformers."""


def load(artifact: Path) -> Target:
    """Read an artifact's target; MeasurementError when it has none."""
    try:
        return Target.load(artifact / FILE)
    except StorageError as error:
        raise MeasurementError(f"{error}; build the artifact again") from error


def mismatch(target: Target, gpus: Sequence[Gpu], version: str) -> str | None:
    """Say why an artifact cannot run on a machine with these GPUs and this version of TensorRT-LLM, or None."""
    if len(gpus) < target.tensor_parallel:
        return f"it was made for {target.tensor_parallel} GPUs, and {len(gpus)} can be used here"
    if target.mode == "checkpoint":
        return None
    if target.tensorrt_llm != version:
        return f"it was built with TensorRT-LLM {target.tensorrt_llm}, and {version} is here; build it again"
    for gpu in gpus[: target.tensor_parallel]:
        if gpu.compute_capability != target.compute_capability:
            return (
                f"it was built for {target.gpu} (compute capability {target.compute_capability}), and this machine has "
                f"{gpu.name} ({gpu.compute_capability}); build it again here"
            )
    return None
