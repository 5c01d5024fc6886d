"""How long a model goes on saying what the reference says, when both write greedily from the same prompts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evals.runner import Ids, Runner
from evals.statistics import Estimate, clustered_mean, share
from evals.windows import Windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Greedy continuations against the reference's."""

    prompts: int
    tokens: int
    """Length of each continuation."""
    length: Estimate
    """Mean number of leading tokens that are the reference's."""
    identical: Estimate
    """Share of continuations that are the reference's to the end."""


def prompts(windows: Windows, count: int, tokens: int) -> Windows:
    """Take the beginnings of up to `count` windows, evenly spread; ValueError when windows are shorter than that."""
    if tokens > windows.ids.shape[1]:
        raise ValueError(f"prompts of {tokens} tokens cannot be taken from windows of {windows.ids.shape[1]}")
    rows = np.linspace(0, len(windows) - 1, min(count, len(windows))).round().astype(int)
    return Windows(ids=windows.ids[rows, :tokens], document=windows.document[rows], utf8_bytes=windows.utf8_bytes[rows])


def continuations(
    runner: Runner, prompts: Windows, tokens: int, track: Callable[[Iterable[Ids]], Iterable[Ids]] = iter
) -> Ids:
    """Return the greedy continuation of each prompt, int32 [prompts, tokens]; end-of-sequence does not stop it."""
    return np.array([list(runner.generate(prompt, tokens)) for prompt in track(prompts.ids)], np.int32)


def margins(runner: Runner, prompts: Windows, continuations: Ids) -> npt.NDArray[np.float32]:
    """Return how many nats the likeliest two tokens lie apart at each place of greedy continuations [prompts, tokens].

    Where they are close, a server that works in other batches may answer with the other one.
    """
    found = np.empty(continuations.shape, np.float32)
    pairs = [(prompt, [ids]) for prompt, ids in zip(prompts.ids, continuations, strict=True)]
    for row, logits in zip(found, runner.continuations(pairs), strict=True):
        second, first = np.partition(logits, -2, axis=1)[:, -2:].T
        row[:] = first - second
    return found


def compare(ours: Ids, reference: Ids, prompts: Windows) -> Agreement:
    """Compare continuations [prompts, tokens] with the reference's."""
    lengths = np.cumprod(ours == reference, axis=1).sum(axis=1, dtype=np.float64)[:, None]
    count, tokens = reference.shape
    return Agreement(
        prompts=count,
        tokens=tokens,
        length=clustered_mean(lengths, prompts.clusters),
        identical=share(int((lengths == tokens).sum()), count),
    )
