"""The tensors in a folder of safetensors files, by their headers alone: names, types and shapes, no weights read."""

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.checkpoints.weights import Entry, read_header
from pipeline.sizing.model import Weight

ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)(\.\w+)?\.weight$")
"""What chooses the experts: a few rows whose rounding would send tokens to other experts; quantizers leave it alone."""


def tensors(folder: Path) -> Iterator[Entry]:
    """Yield the tensors of all safetensors files, sorted by file; CheckpointError names a file that is no such file."""
    for path in files(folder):
        yield from read_header(path, str(folder))


def files(folder: Path) -> list[Path]:
    """List the folder's safetensors files."""
    return sorted(folder.glob("*.safetensors"))


def is_layer_matrix(tensor: Entry | Weight) -> bool:
    """Tell whether quantizers quantize it: a weight matrix inside a numbered layer, not embeddings or head."""
    return (
        len(tensor.shape) >= 2
        and re.search(r"\.\d+\.", tensor.name) is not None
        and tensor.name.endswith("weight")
        and ROUTER.search(tensor.name) is None
    )
