"""Estimates with honest intervals. Every interval is two-sided, at 95 %.

Tokens of one document are not independent of each other, so the unit of chance is a cluster of windows: a document, or
a window where there is only one document.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
RESAMPLES = 1000

Values = npt.NDArray[np.float64]
Clusters = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with the interval that the text's chance leaves open; None where the sample cannot tell."""

    value: float
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None


def clustered_mean(values: Values, clusters: Clusters) -> Estimate:
    """Mean of all values [rows, columns] where rows of one cluster are correlated.

    The cluster-robust (sandwich) variance of a mean with G clusters of any size:
    G / (G - 1) x sum over clusters of (sum of residuals)^2 / n^2; the interval is Student's with G - 1 degrees of
    freedom, which matters when documents are few. See Cameron and Miller, "A Practitioner's Guide to Cluster-Robust
    Inference", 2015. With fewer than two clusters there is no error to state.
    """
    mean = float(values.mean())
    _, index = np.unique(clusters, return_inverse=True)
    residuals = np.bincount(index, weights=(values - mean).sum(axis=1))
    count = len(residuals)
    if count < 2:
        return Estimate(value=mean)
    from scipy import special  # here, because a serving image reads estimates, makes none, and has no scipy

    error = math.sqrt(count / (count - 1) * float(np.square(residuals).sum()) / values.size**2)
    reach = float(special.stdtrit(count - 1, (1 + LEVEL) / 2)) * error
    return Estimate(value=mean, standard_error=error, low=mean - reach, high=mean + reach)


def clustered_share(values: npt.NDArray[np.bool_], clusters: Clusters) -> Estimate:
    """Share of true values [rows, columns]: a clustered mean whose interval stays within 0 and 1."""
    mean = clustered_mean(values.astype(np.float64), clusters)
    if mean.low is None or mean.high is None:
        return mean
    return Estimate(
        value=mean.value, standard_error=mean.standard_error, low=max(0.0, mean.low), high=min(1.0, mean.high)
    )


def share(count: int, total: int) -> Estimate:
    """Return count / total with Wilson's interval, which holds its level near 0 and 1 and for few documents too.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    value = count / total
    center = (value + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(value * (1 - value) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    error = math.sqrt(value * (1 - value) / total)
    return Estimate(value=value, standard_error=error, low=max(0.0, center - half), high=min(1.0, center + half))


def clustered_quantiles(values: Values, clusters: Clusters, probabilities: tuple[float, ...]) -> tuple[Estimate, ...]:
    """Quantiles of all values [rows, columns], with percentile-bootstrap intervals over clusters.

    Whole clusters are drawn with replacement, always by the same random numbers. Instead of copying values, each draw
    gives every value the number of times that its cluster was drawn. A quantile beyond the values of a few clusters
    (p99.9 of six documents) has an interval no better than those documents.
    """
    _, index = np.unique(clusters, return_inverse=True)
    count = int(index.max()) + 1
    order = np.argsort(values, axis=None, kind="stable")
    ordered, owner = values.ravel()[order], np.repeat(index, values.shape[1])[order]
    points = [float(x) for x in np.quantile(ordered, probabilities)]
    if count < 2:
        return tuple(Estimate(value=point) for point in points)
    random = np.random.default_rng(0)
    draws = random.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    quantiles = np.empty((RESAMPLES, len(probabilities)))
    for row, drawn in zip(quantiles, draws, strict=True):
        below = np.cumsum(drawn[owner])
        row[:] = ordered[np.searchsorted(below, np.array(probabilities) * below[-1])]
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(quantiles, [tail, 100 - tail], axis=0)
    errors = quantiles.std(axis=0, ddof=1)
    return tuple(
        Estimate(value=point, standard_error=float(error), low=float(lower), high=float(upper))
        for point, error, lower, upper in zip(points, errors, low, high, strict=True)
    )


def quantile(values: Values, probability: float) -> Estimate | None:
    """Quantile of independent values [count] with an interval that holds whatever their distribution is.

    The number of values up to the true quantile is binomial, so two of the ordered values enclose it at a level known
    beforehand; David and Nagaraja, "Order Statistics", 3rd edition, section 7.1. None where the sample is too small for
    two such values (`least_sample`): what it gives for the quantile is then little more than its largest value.
    """
    from scipy import special

    ordered = np.sort(values)
    below = np.asarray(special.bdtr(np.arange(len(ordered), dtype=np.float64), len(ordered), probability))
    low = int(np.searchsorted(below, (1 - LEVEL) / 2, side="right")) - 1
    high = int(np.searchsorted(below, (1 + LEVEL) / 2))
    if low < 0 or high == len(ordered):
        return None
    point = float(np.quantile(ordered, probability))
    return Estimate(value=point, low=float(ordered[low]), high=float(ordered[high]))


def least_sample(probability: float) -> int:
    """Return how many values it takes for `quantile`: 6 for the median, 36 for p90, 72 for p95, 368 for p99."""
    return math.ceil(math.log((1 - LEVEL) / 2) / math.log(max(probability, 1 - probability)))


def exponential(of: Estimate) -> Estimate:
    """Carry an estimate of a logarithm over: its interval exactly, its standard error by the delta method."""
    value = math.exp(of.value)
    if of.standard_error is None or of.low is None or of.high is None:
        return Estimate(value=value)
    return Estimate(value=value, standard_error=value * of.standard_error, low=math.exp(of.low), high=math.exp(of.high))


def square_root(of: Estimate) -> Estimate:
    """Carry an estimate of a mean square over to its root; the lower end stops at zero."""
    value = math.sqrt(of.value)
    if of.standard_error is None or of.low is None or of.high is None:
        return Estimate(value=value)
    error = of.standard_error / (2 * value) if value else 0.0
    return Estimate(value=value, standard_error=error, low=math.sqrt(max(0.0, of.low)), high=math.sqrt(of.high))


def scaled(of: Estimate, factor: float) -> Estimate:
    """Multiply an estimate by a positive constant, such as a change of units."""
    if of.standard_error is None or of.low is None or of.high is None:
        return Estimate(value=factor * of.value)
    return Estimate(
        value=factor * of.value,
        standard_error=factor * of.standard_error,
        low=factor * of.low,
        high=factor * of.high,
    )
