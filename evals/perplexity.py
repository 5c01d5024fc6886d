"""How well a model predicts text: one scorer over Runners, so that every format is judged by the same arithmetic.

For a window x_0 .. x_{L-1} every token but the first is scored once: nll_i = -ln p(x_i | x_0 .. x_{i-1}), in nats.
Log-softmax is taken in float32, as runtimes give float32 logits; sums and means run in float64.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evals.runner import Ids, Logits, Runner
from evals.statistics import Mean, clustered_mean
from evals.windows import Windows

Nll = npt.NDArray[np.float64]
"""float64 [windows, tokens - 1]: negative log-likelihood of each scored token, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """Perplexity with what is needed to judge it."""

    tokens: int
    """Scored tokens."""
    nll: float
    """Mean over tokens, nats."""
    nll_standard_error: float | None
    """Clustered by document: tokens of one document are not independent. None with fewer than two clusters."""
    perplexity: float
    """exp(nll)."""
    perplexity_standard_error: float | None
    """By the delta method: perplexity x nll_standard_error."""
    bits_per_byte: float
    """Total nll / (ln 2 x UTF-8 bytes of the scored text): comparable between tokenizers, as perplexity is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityRatio:
    """Perplexity over the reference's, on the same tokens: paired, so most of the text's own variance cancels."""

    value: float
    standard_error: float | None


def score(runner: Runner, windows: Windows, track: Callable[[Iterable[Ids]], Iterable[Ids]] = iter) -> Nll:
    """Return the NLL of each scored token. `track` wraps the iteration, for progress.

    Raises ValueError when the runner gives too few rows or a logit that is not finite at a scored token.
    """
    nll = np.empty((len(windows), windows.ids.shape[1] - 1), dtype=np.float64)
    for row, ids in zip(nll, track(windows.ids), strict=True):
        filled = 0
        for block in runner.logits(ids):
            rows = len(block)
            row[filled : filled + rows] = negative_log_likelihood(block, ids[filled + 1 : filled + 1 + rows])
            filled += rows
        if filled != len(row):
            raise ValueError(f"the runner gave {filled} rows of logits for a window of {len(ids)} tokens")
    if not np.isfinite(nll).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(nll))} tokens got a log-probability that is not finite")
    return nll


def negative_log_likelihood(logits: Logits, targets: Ids) -> npt.NDArray[np.float64]:
    """Return -log softmax(logits)[target] for each row; logits [rows, vocabulary], targets [rows]."""
    top = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - top).sum(axis=1, dtype=np.float64)
    chosen = np.take_along_axis(logits, targets[:, None].astype(np.intp), axis=1) - top
    result: npt.NDArray[np.float64] = np.log(total) - chosen[:, 0]
    return result


def summarize(nll: Nll, windows: Windows) -> Perplexity:
    """Reduce per-token NLL to perplexity and bits per byte, with standard errors."""
    mean = _mean(nll, windows)
    perplexity = math.exp(mean.value)
    return Perplexity(
        tokens=nll.size,
        nll=mean.value,
        nll_standard_error=mean.standard_error,
        perplexity=perplexity,
        perplexity_standard_error=_scaled(perplexity, mean.standard_error),
        bits_per_byte=float(nll.sum()) / math.log(2) / int(windows.utf8_bytes.sum()),
    )


def ratio(nll: Nll, reference: Nll, windows: Windows) -> PerplexityRatio:
    """Compare with the reference token by token: exp(mean(nll - reference))."""
    mean = _mean(nll - reference, windows)
    value = math.exp(mean.value)
    return PerplexityRatio(value=value, standard_error=_scaled(value, mean.standard_error))


def _mean(values: Nll, windows: Windows) -> Mean:
    """Mean over tokens, clustered by document; a single document is clustered by window instead."""
    clusters = windows.document if len(set(windows.document.tolist())) > 1 else np.arange(len(windows), dtype=np.int32)
    return clustered_mean(values, clusters)


def _scaled(factor: float, error: float | None) -> float | None:
    return None if error is None else factor * error
