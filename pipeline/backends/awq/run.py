"""Running an AWQ artifact on the CPU."""

from contextlib import AbstractContextManager
from pathlib import Path

from transformers import AwqConfig

from evals.runner import Runner
from pipeline.backends.common import packed_linear
from pipeline.compute import Compute


def runner(artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
    """Load with torch's int4 kernel, pinned: kernels differ numerically, and the automatic choice with the machine.

    The kernel is named after the check of AwqConfig, whose list of names is older than GPTQModel's kernels.
    """
    settings = AwqConfig()
    settings.backend = "awq_torch_aten"
    return packed_linear.runner(artifact, compute, settings)
