"""The reference's distributions, kept as what goes into its head: exact, and small.

The next-token distribution over a vocabulary of 150,000 takes 300 KB a token in 16 bits, and cutting it to its
likeliest tokens keeps only a lower bound of every divergence. The hidden state that the head turns into that
distribution takes 2 to 16 KB, and the head is stored once: nothing is lost, at the price of one multiplication by the
head for each artifact, a few percent of a forward pass of a large model.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Hidden = npt.NDArray[Any]
"""[rows, hidden]: float16 or float32, or bfloat16 as its bits in uint16."""

WORK_BYTES = 32 * 2**20
"""Size of one float32 buffer of logits or of head weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a model does with the product of hidden state and head: scale x it, then cap x tanh(it / cap)."""

    scale: float = 1.0
    cap: float | None = None


class Head:
    """The head's weight [vocabulary, hidden] in a file, read some rows at a time: it may be gigabytes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "head.npy"
        self._weight = np.load(self._path, mmap_mode="r")
        self._bias = np.load(folder / "bias.npy") if (folder / "bias.npy").exists() else None
        self._shape = Shape(**json.loads((folder / "head.json").read_text(encoding="utf-8")))

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return int(self._weight.shape[0])

    def logits(self, hidden: Hidden) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Yield (tokens, logits [rows, tokens]) over the whole vocabulary."""
        wide = widen(hidden)
        columns = max(1, WORK_BYTES // (4 * max(len(wide), wide.shape[1])))
        for start in range(0, self.vocabulary, columns):
            tokens = slice(start, min(start + columns, self.vocabulary))
            product = wide @ widen(self._read(tokens)).T
            if self._bias is not None:
                product += self._bias[tokens]
            yield tokens, shaped(product, self._shape)

    def _read(self, tokens: slice) -> Hidden:
        """Read rows from the file: pages of a memory map would stay resident, and count as the artifact's memory."""
        width, item = self._weight.shape[1], self._weight.dtype
        start = self._weight.offset + tokens.start * width * item.itemsize
        rows = tokens.stop - tokens.start
        return np.fromfile(self._path, item, rows * width, offset=start).reshape(rows, width)


def save(folder: Path, weight: Hidden, bias: npt.NDArray[np.float32] | None, shape: Shape) -> None:
    """Write what Head reads."""
    np.save(folder / "head.npy", weight)
    if bias is not None:
        np.save(folder / "bias.npy", bias)
    (folder / "head.json").write_text(json.dumps(asdict(shape)) + "\n", encoding="utf-8")


def shaped(product: npt.NDArray[np.float32], shape: Shape) -> npt.NDArray[np.float32]:
    """Apply what the model does between its head and its logits, in place."""
    if shape.scale != 1.0:
        product *= np.float32(shape.scale)
    if shape.cap is not None:
        product /= np.float32(shape.cap)
        np.tanh(product, out=product)
        product *= np.float32(shape.cap)
    return product


def widen(values: Hidden) -> npt.NDArray[np.float32]:
    """Return float32; uint16 holds bfloat16, the upper half of a float32."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)
