"""Picking tokens from logits, for the engines whose runtime leaves that to us."""

import numpy as np
import numpy.typing as npt

from containers.engines.contract import Sampling
from evals.runner import Logits
from evals.scoring import log_normalizer

SEEDS = 2**63
"""A seed counts modulo this: the generator takes none below zero, clients send such ones."""


class Sampler:
    """Picks the tokens of one request; a seed fixes its draws, whatever runs beside it."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(None if sampling.seed is None else sampling.seed % SEEDS)

    def pick(self, row: Logits) -> int:
        """Pick a token from one row of logits, [vocabulary]."""
        temperature, top_p = self._sampling.temperature, self._sampling.top_p
        if temperature == 0:
            return int(row.argmax())
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the likeliest to -inf, which is right
            weights = np.exp((row.astype(np.float64) - row.max()) / temperature)
        if top_p >= 1:
            return self._draw(weights)
        kept = _nucleus(weights / weights.sum(), top_p)
        return int(kept[self._draw(weights[kept])])

    def _draw(self, weights: npt.NDArray[np.float64]) -> int:
        cumulative = weights.cumsum()
        return int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))


def likeliest(row: Logits, picked: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Return the picked token's log-probability, and (id, log-probability) of the `count` likeliest, best first."""
    normalizer = float(log_normalizer(row[None])[0])
    count = min(count, len(row))
    top = np.argpartition(row, -count)[-count:] if count else np.empty(0, np.intp)
    best = top[np.argsort(-row[top], kind="stable")]
    return float(row[picked]) - normalizer, [(int(id_), float(row[id_]) - normalizer) for id_ in best]


def _nucleus(probabilities: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.intp]:
    """Return the ids of the smallest set of likeliest tokens whose probabilities reach top_p, likeliest first.

    All tokens below (1 - top_p) / vocabulary together do not reach 1 - top_p, so none of them is in the set; sorting
    them, nearly all of a large vocabulary, would take as long as a small model's step.
    """
    likely = np.flatnonzero(probabilities >= (1 - top_p) / len(probabilities))
    order = likely[np.argsort(-probabilities[likely], kind="stable")]
    reached = int(np.searchsorted(probabilities[order].cumsum(), top_p)) + 1
    return order[:reached]
