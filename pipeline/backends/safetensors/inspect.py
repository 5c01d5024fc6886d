"""Reading such a folder back for the structural checks."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from pipeline.backends.common import hf_tokenizer, stored
from pipeline.backends.contract import Contents, Tensor
from pipeline.checkpoints.weights import NAMES

SLACK = 1e-6
"""Sums of floats."""


@contextlib.contextmanager
def contents(artifact: Path, checkpoint: Path) -> Iterator[Contents]:
    """Open an artifact; 16 bits for each float of the checkpoint, integers as they were."""
    originals = list(stored.tensors(checkpoint))
    parameters = sum(tensor.parameters for tensor in originals)
    expected = (
        sum(16 * tensor.parameters if tensor.dtype in NAMES else 8 * tensor.bytes for tensor in originals) / parameters
    )
    yield Contents(
        tensors=_tensors(artifact),
        bits_per_weight=8 * sum(tensor.bytes for tensor in stored.tensors(artifact)) / parameters,
        expected_bits_per_weight=(expected - SLACK, expected + SLACK),
        tokenizer=hf_tokenizer.describe(artifact),
    )


def _tensors(artifact: Path) -> Iterator[Tensor]:
    for path in stored.files(artifact):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping: it has no iterator)
                values = file.get_tensor(name)
                if values.is_floating_point():
                    yield Tensor(name=name, values=values.float().numpy(), packed=False)
