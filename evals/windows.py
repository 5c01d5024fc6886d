"""Windows of token ids: the one input that every runtime is scored on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from evals.runner import Ids


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Windows:
    """Windows of equal length, each cut from a single document.

    A window is a prefix token (BOS where the tokenizer has one) followed by text. Its first token is context only;
    every other token is scored exactly once.
    """

    ids: Ids
    """int32 [windows, tokens]."""
    document: npt.NDArray[np.int32]
    """int32 [windows]: which document each window comes from; statistics cluster on it."""
    utf8_bytes: npt.NDArray[np.int64]
    """int64 [windows]: bytes of the text whose tokens are scored, the denominator of bits per byte."""

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def first(self, count: int) -> Self:
        """Return the first windows."""
        return type(self)(ids=self.ids[:count], document=self.document[:count], utf8_bytes=self.utf8_bytes[:count])

    @property
    def clusters(self) -> npt.NDArray[np.int32]:
        """int32 [windows]: which windows chance holds together. Windows of a single document stand for themselves."""
        one_document = len(set(self.document.tolist())) < 2
        return np.arange(len(self), dtype=np.int32) if one_document else self.document

    def save(self, path: Path) -> None:
        """Write an .npz: equal windows give equal bytes, because numpy dates its members 1980-01-01."""
        np.savez(path, ids=self.ids, document=self.document, utf8_bytes=self.utf8_bytes)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(ids=arrays["ids"], document=arrays["document"], utf8_bytes=arrays["utf8_bytes"])
