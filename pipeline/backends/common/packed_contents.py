"""Reading back what GPTQModel wrote: packed integers and scales in place of each linear layer's weight."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.backends.common import hf_tokenizer, packed_sizes, stored
from pipeline.backends.contract import Contents, Tensor
from pipeline.checkpoints.weights import read_header
from pipeline.sizing import read

PACKED = ("qweight", "qzeros")

SLACK = 0.02
"""Share by which bits per weight may differ from the shapes' sum: buffers that old checkpoints carry, biases."""


@contextlib.contextmanager
def inspect(
    artifact: Path, checkpoint: Path, *, bits: int, group_size: int, symmetric: bool, index: bool
) -> Iterator[Contents]:
    """Open an artifact for the structural checks; `index` says whether each input column's group is stored (GPTQ)."""
    model = read.folder(checkpoint)
    kept = [weight for weight in model.weights if not packed_sizes.dropped(weight, model)]
    bits_of = partial(packed_sizes.bits, bits=bits, group_size=group_size, index=index)
    expected = sum(map(bits_of, kept)) / model.parameters
    yield Contents(
        tensors=_tensors(artifact, symmetric=symmetric),
        bits_per_weight=8 * sum(tensor.bytes for tensor in stored.tensors(artifact)) / model.parameters,
        expected_bits_per_weight=(expected * (1 - SLACK), expected * (1 + SLACK)),
        tokenizer=hf_tokenizer.describe(artifact),
    )


def _tensors(artifact: Path, *, symmetric: bool) -> Iterator[Tensor]:
    """Yield what a fault would show in.

    Left out: g_idx, which numbers the groups, and symmetric zero points, which are one constant by design.
    """
    for path in stored.files(artifact):
        for entry in read_header(path, str(artifact)):
            leaf = entry.name.rpartition(".")[2]
            if leaf == "g_idx" or (leaf == "qzeros" and symmetric):
                continue
            yield Tensor(name=entry.name, values=stored.values(path, entry), packed=leaf in PACKED)
