"""Running such a folder through transformers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from evals.runner import Runner
from pipeline.backends.common import causal_lm
from pipeline.compute import Compute
from pipeline.errors import MeasurementError


@contextlib.contextmanager
def runner(artifact: Path, dtype: str, compute: Compute) -> Iterator[Runner]:
    """Load it in its own dtype, as the reference is. MeasurementError for a folder that cannot be loaded."""
    try:
        loaded = causal_lm.load(artifact, dtype, compute)
    except Exception as error:  # safetensors, transformers and torch raise their own kinds
        words = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        raise MeasurementError(f"{artifact}: cannot be loaded ({words}); build it again") from error
    yield loaded
