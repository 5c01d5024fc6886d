"""Running an AWQ artifact through transformers."""

from contextlib import AbstractContextManager
from pathlib import Path

from transformers import AwqConfig

from evals.runner import Runner
from pipeline.backends.common import packed_linear
from pipeline.compute import Compute


def runner(artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
    """Load with a kernel pinned: kernels differ numerically, and the automatic choice with the machine.

    That is torch's int4 kernel on CPUs, and one that unpacks on GPUs. It is named after the check of AwqConfig, whose
    list of names is older than GPTQModel's kernels.
    """
    settings = AwqConfig()
    settings.backend = "awq_torch_aten" if compute.device == "cpu" else "awq_torch"
    return packed_linear.runner(artifact, compute, settings)
