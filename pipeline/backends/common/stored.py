"""The tensors in a folder of safetensors files: names, types and shapes by their headers alone, values one by one."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evals import head
from pipeline.checkpoints.weights import Entry, read_header
from pipeline.sizing.model import Weight

ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)(\.\w+)?\.weight$")
"""What chooses the experts: a few rows whose rounding would send tokens to other experts; quantizers leave it alone."""

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
"""As numpy has them; bfloat16 by its bits."""


def tensors(folder: Path) -> Iterator[Entry]:
    """Yield the tensors of all safetensors files, sorted by file; CheckpointError names a file that is no such file."""
    for path in files(folder):
        yield from read_header(path, str(folder))


def files(folder: Path) -> list[Path]:
    """List the folder's safetensors files."""
    return sorted(folder.glob("*.safetensors"))


def values(path: Path, tensor: Entry) -> npt.NDArray[Any]:
    """Read one tensor: integers as they are, floats of 16 and 32 bits as float32."""
    stored = np.fromfile(path, DTYPES[tensor.dtype], tensor.parameters, offset=tensor.begin).reshape(tensor.shape)
    return stored if tensor.dtype.startswith(("I", "U8")) else head.widen(stored)


def is_layer_matrix(tensor: Entry | Weight) -> bool:
    """Tell whether quantizers quantize it: a weight matrix inside a numbered layer, not embeddings or head."""
    return (
        len(tensor.shape) >= 2
        and re.search(r"\.\d+\.", tensor.name) is not None
        and tensor.name.endswith("weight")
        and ROUTER.search(tensor.name) is None
    )
