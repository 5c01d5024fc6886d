"""How well a model predicts text, from the negative log-likelihood of each token."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evals.statistics import Estimate, clustered_mean, exponential, scaled
from evals.windows import Windows

Nll = npt.NDArray[np.float64]
"""float64 [windows, tokens - 1]: negative log-likelihood of each scored token, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """Perplexity with what is needed to judge it."""

    tokens: int
    """Scored tokens."""
    nll: Estimate
    """Mean over tokens, nats."""
    perplexity: Estimate
    """exp(nll)."""
    bits_per_byte: Estimate
    """Total nll / (ln 2 x UTF-8 bytes of the scored text): comparable between tokenizers, as perplexity is not."""


def summarize(nll: Nll, windows: Windows) -> Perplexity:
    """Reduce per-token NLL to perplexity and bits per byte."""
    mean = clustered_mean(nll, windows.clusters)
    tokens_per_byte = nll.size / int(windows.utf8_bytes.sum())
    return Perplexity(
        tokens=nll.size,
        nll=mean,
        perplexity=exponential(mean),
        bits_per_byte=scaled(mean, tokens_per_byte / math.log(2)),
    )


def log_ratio(nll: Nll, reference: Nll, windows: Windows) -> Estimate:
    """Return ln(perplexity / the reference's): paired token by token, so most of the text's own variance cancels."""
    return clustered_mean(nll - reference, windows.clusters)
