"""Answers against the reference's, with numbers worked out by hand."""

import pytest

from evals.answers import Outcome, accuracy, compare
from evals.statistics import share


def outcomes(text: str) -> list[Outcome]:
    """One document a word: the choice, then + for right or - for wrong; a bare choice is neither."""
    judge = {"+": True, "-": False}
    return [
        Outcome(document=str(number), chosen=word[0], correct=judge.get(word[1:]))
        for number, word in enumerate(text.split())
    ]


def test_wilsons_interval_is_the_published_one() -> None:
    """Newcombe, "Two-sided confidence intervals for the single proportion", Statist. Med. 17 (1998), table I."""
    published = ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718))
    for count, total, low, high in published:
        found = share(count, total)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_accuracy_counts_what_is_right_or_wrong() -> None:
    found = accuracy(outcomes("0+ 1- 0+ 2+ 3"))
    assert found is not None
    assert found.value == 0.75
    assert accuracy(outcomes("0 1")) is None


def test_changes_are_counted_document_by_document() -> None:
    ours, reference = outcomes("0+ 1- 2- 3- 1- 1+ 2-"), outcomes("0+ 0+ 0+ 0+ 0+ 2- 0-")
    found = compare(ours, reference)
    assert (found.right_to_wrong, found.wrong_to_right) == (4, 1)
    # A split of 4 to 1 or 5 to 0, either way round: 2 x (5 + 1) / 2^5.
    assert found.p_value == pytest.approx(0.375)
    assert found.flips is not None
    assert found.flips.value == pytest.approx(6 / 7)


def test_equal_answers_differ_in_nothing() -> None:
    found = compare(outcomes("0+ 1-"), outcomes("0+ 1-"))
    assert found.flips is not None
    assert (found.flips.value, found.right_to_wrong, found.wrong_to_right, found.p_value) == (0, 0, 0, 1)


def test_answers_to_other_documents_are_refused() -> None:
    with pytest.raises(ValueError, match="2 answers are not to the reference's 1 documents"):
        compare(outcomes("0+ 1-"), outcomes("0+"))
