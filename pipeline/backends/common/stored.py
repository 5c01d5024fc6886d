"""The tensors in a folder of safetensors files, by their headers alone: names, types and shapes, no weights read."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.errors import StorageError

BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}

ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)(\.\w+)?\.weight$")
"""What chooses the experts: a few rows whose rounding would send tokens to other experts; quantizers leave it alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One tensor as a safetensors header declares it."""

    name: str
    dtype: str
    """The format's own name, such as BF16."""
    shape: tuple[int, ...]
    file: Path

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """What it takes on disk, in bits."""
        return self.elements * BITS[self.dtype]

    @property
    def is_layer_matrix(self) -> bool:
        """True for a weight that quantizers quantize: a matrix inside a numbered layer, not embeddings or head."""
        return (
            len(self.shape) >= 2
            and re.search(r"\.\d+\.", self.name) is not None
            and self.name.endswith("weight")
            and ROUTER.search(self.name) is None
        )


def tensors(folder: Path) -> Iterator[Stored]:
    """Yield the tensors of all safetensors files, sorted by file; StorageError names a file that is no such file."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping: it has no iterator)
                    part = file.get_slice(name)
                    yield Stored(name=name, dtype=part.get_dtype(), shape=tuple(part.get_shape()), file=path)
        except (SafetensorError, OSError) as error:
            raise StorageError(f"{path}: not a whole safetensors file ({error}); build the artifact again") from error
