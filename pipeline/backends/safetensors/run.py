"""Running such a folder through transformers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from evals.runner import Runner
from pipeline.backends.common import causal_lm
from pipeline.compute import Compute


@contextlib.contextmanager
def runner(artifact: Path, dtype: str, compute: Compute) -> Iterator[Runner]:
    """Load it in its own dtype, as the reference is."""
    yield causal_lm.load(artifact, dtype, compute)
