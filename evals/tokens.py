"""The per-token figures of one artifact, kept so that a later run, and what is served, are compared with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from evals.runner import Ids

Figures = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Tokens:
    """What one artifact did with each scored token, and of which text and against which reference."""

    nll: Figures
    """float32 [windows, tokens - 1]: negative log-likelihood in nats. Rounded, and far below what any text can tell:
    1e-7 of a value a token, and of both signs."""
    kld: Figures
    """float32 [windows, tokens - 1]: divergence from the reference in nats."""
    same: npt.NDArray[np.bool_]
    """bool [windows, tokens - 1]: whether artifact and reference find the same token likeliest."""
    clusters: npt.NDArray[np.int32]
    """int32 [windows]: see evals.windows.Windows.clusters."""
    greedy: Ids
    """int32 [prompts, tokens]: see evals.agreement.continuations."""
    margins: Figures
    """float32 [prompts, tokens]: see evals.agreement.margins."""
    text: str
    """sha256 of the evaluation windows: only figures of the same ids are paired."""
    reference: str
    """Digest of the reference's checkpoint."""

    @classmethod
    def none(cls) -> Self:
        """Return the figures of an artifact that could not be scored."""
        empty = np.empty((0, 0))
        return cls(
            nll=empty.astype(np.float32),
            kld=empty.astype(np.float32),
            same=empty.astype(np.bool_),
            clusters=np.empty(0, np.int32),
            greedy=empty.astype(np.int32),
            margins=empty.astype(np.float32),
            text="",
            reference="",
        )

    def save(self, path: Path) -> None:
        """Write an .npz, at once or not at all: equal figures give equal bytes, as numpy dates its members 1980."""
        partial = path.with_name(f".{path.name}.partial.npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            partial,
            nll=self.nll,
            kld=self.kld,
            same=self.same,
            clusters=self.clusters,
            greedy=self.greedy,
            margins=self.margins,
            text=np.array(self.text),
            reference=np.array(self.reference),
        )
        partial.replace(path)

    @classmethod
    def load(cls, source: Path | BinaryIO) -> Self:
        """Read what `save` wrote."""
        with np.load(source, allow_pickle=False) as arrays:
            return cls(
                nll=arrays["nll"],
                kld=arrays["kld"],
                same=arrays["same"],
                clusters=arrays["clusters"],
                greedy=arrays["greedy"],
                margins=arrays["margins"],
                text=str(arrays["text"]),
                reference=str(arrays["reference"]),
            )
