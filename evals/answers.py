"""Answers to a task's documents: how many are right, and which changed against the reference's on the same documents.

Two models answer the same documents, so they are compared document by document: McNemar's test looks only at those
that one answers right and the other wrong. Accuracy can stay while many answers change; flips count that (Dutta et al.,
"Accuracy is Not All You Need", NeurIPS 2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evals.statistics import Estimate, share


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a model made of one document."""

    document: str
    """Digest of the document, so that two runs are known to have had the same."""
    chosen: str | None
    """The number of the choice, the generated text, or whether the greedy continuation was the true one."""
    correct: bool | None
    """None where a task has no right and wrong, such as perplexity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A metric of lm-eval's."""

    value: float
    standard_error: float | None
    """The standard error of a mean over documents; None for other aggregates, and for fewer than two documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """One task, answered."""

    metrics: Mapping[str, Score]
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What came of asking a model several tasks."""

    answers: Mapping[str, Answers]
    """By task."""
    impossible: Mapping[str, str]
    """Why a task cannot be asked of this checkpoint, by task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What differs from the reference's answers."""

    flips: Estimate | None
    """Share of documents whose chosen answer is another one; None where nothing is chosen."""
    right_to_wrong: int
    wrong_to_right: int
    p_value: float
    """McNemar's exact test, two-sided: the chance of a split at least as uneven if both were equally good."""


def accuracy(outcomes: Sequence[Outcome]) -> Estimate | None:
    """Return the share of right answers; None for a task without right and wrong."""
    judged = [outcome.correct for outcome in outcomes if outcome.correct is not None]
    return share(sum(judged), len(judged)) if judged else None


def compare(ours: Sequence[Outcome], reference: Sequence[Outcome]) -> Changes:
    """Compare document by document. Raises ValueError when the documents are not the same, in the same order."""
    if [outcome.document for outcome in ours] != [outcome.document for outcome in reference]:
        raise ValueError(f"{len(ours)} answers are not to the reference's {len(reference)} documents")
    from scipy.stats import binomtest

    pairs = list(zip(ours, reference, strict=True))
    lost = sum(one.correct is False and other.correct is True for one, other in pairs)
    won = sum(one.correct is True and other.correct is False for one, other in pairs)
    chosen = [one.chosen != other.chosen for one, other in pairs if one.chosen is not None]
    return Changes(
        flips=share(sum(chosen), len(chosen)) if chosen else None,
        right_to_wrong=lost,
        wrong_to_right=won,
        p_value=float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0,
    )
