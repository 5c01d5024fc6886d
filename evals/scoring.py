"""One scorer over Runners, so that every format is judged by the same arithmetic.

For a window x_0 .. x_{L-1} every token but the first is scored once: nll_i = -ln p(x_i | x_0 .. x_{i-1}), in nats.
Logits are float32, as runtimes give them; their exponentials are summed in float64.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from evals.perplexity import Nll
from evals.runner import Ids, Logits, Runner
from evals.windows import Windows

SLAB_ELEMENTS = 2**16
"""Logits worked on at once: their temporaries stay in the processor's cache."""

Normalizer = npt.NDArray[np.float64]
"""float64 [rows]: ln sum exp of each row of logits."""

Observer = Callable[[int, int, Logits, Normalizer], None]
"""Sees every block of logits: window, row within it where the block begins, logits, their normalizer."""


def score(
    runner: Runner,
    windows: Windows,
    observe: Observer = lambda *_: None,
    track: Callable[[Iterable[Ids]], Iterable[Ids]] = iter,
) -> Nll:
    """Return the NLL of every scored token. `track` wraps the iteration, for progress.

    Raises ValueError when the runner gives too few rows or a logit that is not finite at a scored token.
    """
    nll = np.empty((len(windows), windows.ids.shape[1] - 1))
    for window, ids in enumerate(track(windows.ids)):
        row = 0
        for block in runner.logits(ids):
            rows = slice(row, row + len(block))
            normalizer = log_normalizer(block)
            nll[window, rows] = normalizer - target_logits(block, ids[rows.start + 1 : rows.stop + 1])
            observe(window, row, block, normalizer)
            row = rows.stop
        if row != nll.shape[1]:
            raise ValueError(f"the runner gave {row} rows of logits for a window of {len(ids)} tokens")
    if not np.isfinite(nll).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(nll))} tokens got a log-probability that is not finite")
    return nll


def log_normalizer(logits: Logits) -> Normalizer:
    """Return ln sum exp of each row of logits [rows, vocabulary]."""
    result = np.empty(len(logits))
    slab = max(1, SLAB_ELEMENTS // logits.shape[1])
    for start in range(0, len(logits), slab):
        part = logits[start : start + slab]
        top = part.max(axis=1, keepdims=True)
        shifted = part - top
        np.exp(shifted, out=shifted)
        result[start : start + slab] = top[:, 0] + np.log(shifted.sum(axis=1, dtype=np.float64))
    return result


def target_logits(logits: Logits, targets: Ids) -> npt.NDArray[np.float64]:
    """Return logits[row, targets[row]] of each row."""
    return np.take_along_axis(logits, targets[:, None].astype(np.intp), axis=1)[:, 0].astype(np.float64)
