"""What changed between two runs: paired token by token or document by document where both had the same ones.

Two runs score the same text, so most of what chance does to one it does to the other, and cancels in the difference.
"""

import math
from collections.abc import Sequence

import numpy as np

from evals.answers import Outcome
from evals.statistics import Estimate, clustered_mean, exponential, scaled
from evals.tokens import Tokens

PAIRED = (
    "perplexity", "bits_per_byte", "log_perplexity_ratio", "perplexity_ratio", "kld_mean", "top1_agreement",
    "delta_p_mean",
)  # fmt: skip
"""Metrics that are smooth functions of means over tokens. All but the first two need the same reference as well."""


def of_tokens(metric: str, old: Estimate, before: Tokens, after: Tokens) -> Estimate | None:
    """Return the change of a metric, `old` before, from the figures of each token; None where they cannot be paired.

    With d = nll after - nll before, the perplexity is multiplied by exp(mean d), and so is its ratio to one and the
    same reference: the change is old x (exp(mean d) - 1), old taken as it is. The other metrics are means themselves.
    """
    if metric not in PAIRED or before.text != after.text or before.nll.shape != after.nll.shape or not before.nll.size:
        return None
    if metric not in ("perplexity", "bits_per_byte") and before.reference != after.reference:
        return None
    nll_before, nll_after = before.nll.astype(np.float64), after.nll.astype(np.float64)
    if metric == "kld_mean":
        values = after.kld.astype(np.float64) - before.kld
    elif metric == "top1_agreement":
        values = after.same.astype(np.float64) - before.same
    elif metric == "delta_p_mean":
        values = np.exp(-nll_after) - np.exp(-nll_before)
    else:
        values = nll_after - nll_before
    mean = clustered_mean(values, before.clusters)
    if metric in ("perplexity", "perplexity_ratio"):
        return scaled(_shifted(exponential(mean), -1.0), old.value)
    if metric == "bits_per_byte":
        return scaled(mean, old.value / float(nll_before.mean()))
    return mean


def of_answers(before: Sequence[Outcome], after: Sequence[Outcome]) -> Estimate | None:
    """Return the change in accuracy, document by document; None for other documents, or without right and wrong."""
    if [one.document for one in before] != [one.document for one in after]:
        return None
    pairs = [(one.correct, other.correct) for one, other in zip(before, after, strict=True)]
    changes = [[float(late) - float(early)] for early, late in pairs if early is not None and late is not None]
    return clustered_mean(np.array(changes), np.arange(len(changes), dtype=np.int32)) if changes else None


def difference(new: Estimate, old: Estimate) -> Estimate:
    """Return new - old of two estimates that are not paired.

    The interval is recovered from the two (MOVER: Zou and Donner, "Construction of confidence limits about effect
    measures", Statistics in Medicine 27, 2008), which takes them as independent and needs neither to be symmetric. A
    side without an interval counts as exact. Of the same text the truth is narrower: pair where you can.
    """
    value = new.value - old.value
    if new.low is None and old.low is None:
        return Estimate(value=value)
    below_new, below_old = (one.value - (one.value if one.low is None else one.low) for one in (new, old))
    above_new, above_old = ((one.value if one.high is None else one.high) - one.value for one in (new, old))
    return Estimate(
        value=value, low=value - math.hypot(below_new, above_old), high=value + math.hypot(above_new, below_old)
    )


def _shifted(of: Estimate, by: float) -> Estimate:
    low, high = (None if end is None else end + by for end in (of.low, of.high))
    return Estimate(value=of.value + by, standard_error=of.standard_error, low=low, high=high)
