"""Running an AWQ artifact through transformers."""

from contextlib import AbstractContextManager
from pathlib import Path

from transformers import AwqConfig

from evals.runner import Runner
from pipeline.backends.common import packed_linear
from pipeline.compute import Compute


def runner(artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
    """Load with the kernel pinned: kernels differ numerically, and the automatic choice differs between machines."""
    return packed_linear.runner(artifact, compute, settings(compute))


def settings(compute: Compute) -> AwqConfig:
    """Name torch's int4 kernel on CPUs, and the one that unpacks on GPUs.

    The kernel is named after the check of AwqConfig, whose list of names is older than GPTQModel's kernels.
    """
    chosen = AwqConfig()
    chosen.backend = "awq_torch_aten" if compute.device == "cpu" else "awq_torch"
    return chosen
