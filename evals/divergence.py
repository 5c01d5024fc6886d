"""How far a model's predictions are from the reference's, token by token, over the whole vocabulary.

For each scored token, with p the reference's and q the artifact's distribution of it given the same tokens before:
KL divergence D(p || q) = sum over the vocabulary of p ln(p / q), in nats; whether both hold the same token for the
likeliest; and delta p = q(token) - p(token), the change in probability of the token that really follows.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evals.head import Head
from evals.perplexity import Nll
from evals.runner import Logits
from evals.scoring import Normalizer
from evals.statistics import Estimate, clustered_mean, clustered_quantiles, clustered_share, square_root
from evals.windows import Windows

QUANTILES = (0.5, 0.95, 0.99, 0.999)


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """KL divergence from the reference in nats a token, agreement, and change in the true token's probability."""

    mean: Estimate
    median: Estimate
    p95: Estimate
    p99: Estimate
    p999: Estimate
    maximum: float
    """The largest of these tokens. It has no interval: the largest of more text is larger."""
    top1_agreement: Estimate
    """Share of tokens for which both models find the same token likeliest."""
    delta_p_mean: Estimate
    delta_p_rms: Estimate
    """Root of the mean square."""


class Comparison:
    """Compares every block of logits that the scorer sees with the reference's distributions."""

    def __init__(self, folder: Path) -> None:
        """Open what the reference stage wrote: hidden.npy [windows, tokens - 1, hidden], and the head."""
        self._hidden = np.load(folder / "hidden.npy", mmap_mode="r")
        self._head = Head(folder)
        self.kld: Nll = np.full(self._hidden.shape[:2], np.nan)
        """KL divergence from the reference, nats."""
        self.same: npt.NDArray[np.bool_] = np.zeros(self._hidden.shape[:2], np.bool_)
        """Whether both find the same token likeliest."""

    def observe(self, window: int, row: int, logits: Logits, normalizer: Normalizer) -> None:
        """See evals.scoring.Observer. Raises ValueError when the vocabularies differ in size.

        With z and y the logits of reference and artifact, D = sum p (z - y) + ln sum exp y - ln sum exp z. Of two like
        models z - y is small and exact in float32, and the normalizers are summed in float64, so that divergences far
        below 1e-6 still come out. The sum over the vocabulary runs in parts, each rescaled to the largest z so far.
        """
        if logits.shape[1] != self._head.vocabulary:
            raise ValueError(
                f"the artifact has {logits.shape[1]} tokens in its vocabulary, the reference {self._head.vocabulary}"
            )
        rows = slice(row, row + len(logits))
        best = np.full(len(logits), -np.inf, np.float32)
        likeliest = np.zeros(len(logits), np.intp)
        total, weighted = np.zeros(len(logits)), np.zeros(len(logits))
        for tokens, z in self._head.logits(self._hidden[window, rows]):
            top = z.argmax(axis=1)
            here = np.take_along_axis(z, top[:, None], axis=1)[:, 0]
            better = here > best
            rescale = np.exp(np.where(better, best - here, 0.0), dtype=np.float64)
            total, weighted = total * rescale, weighted * rescale
            likeliest[better], best[better] = top[better] + tokens.start, here[better]
            difference = z - logits[:, tokens]
            z -= best[:, None]
            np.exp(z, out=z)
            total += z.sum(axis=1, dtype=np.float64)
            weighted += np.einsum("rt,rt->r", z, difference)
        self.kld[window, rows] = np.maximum(weighted / total + normalizer - (best + np.log(total)), 0.0)
        self.same[window, rows] = likeliest == logits.argmax(axis=1)


def summarize(comparison: Comparison, nll: Nll, reference: Nll, windows: Windows) -> Divergence:
    """Reduce per-token figures, all [windows, tokens - 1], to estimates.

    Raises ValueError for divergences that are not finite: the artifact rules out what the reference expects.
    """
    clusters, kld = windows.clusters, comparison.kld
    if not np.isfinite(kld).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(kld))} tokens have a divergence that is not finite")
    median, p95, p99, p999 = clustered_quantiles(kld, clusters, QUANTILES)
    delta = np.exp(-nll) - np.exp(-reference)
    return Divergence(
        mean=clustered_mean(kld, clusters),
        median=median,
        p95=p95,
        p99=p99,
        p999=p999,
        maximum=float(kld.max()),
        top1_agreement=clustered_share(comparison.same, clusters),
        delta_p_mean=clustered_mean(delta, clusters),
        delta_p_rms=square_root(clustered_mean(np.square(delta), clusters)),
    )
