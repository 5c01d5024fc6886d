"""Means with honest errors."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean and its standard error; None where the sample cannot tell."""

    value: float
    standard_error: float | None


def clustered_mean(values: npt.NDArray[np.float64], clusters: npt.NDArray[np.int32]) -> Mean:
    """Mean of all values [rows, columns] where rows of one cluster are correlated.

    The cluster-robust (sandwich) variance of a mean with G clusters of any size:
    G / (G - 1) x sum over clusters of (sum of residuals)^2 / n^2. See Cameron and Miller, "A Practitioner's Guide to
    Cluster-Robust Inference", 2015. With fewer than two clusters there is no error to state.
    """
    mean = float(values.mean())
    _, index = np.unique(clusters, return_inverse=True)
    residuals = np.bincount(index, weights=(values - mean).sum(axis=1))
    count = len(residuals)
    if count < 2:
        return Mean(value=mean, standard_error=None)
    variance = count / (count - 1) * float(np.square(residuals).sum()) / values.size**2
    return Mean(value=mean, standard_error=math.sqrt(variance))
