"""Greedy continuations compared by hand."""

import numpy as np
import pytest

from evals import agreement
from tests.support.fakes import TableRunner, windows


def test_the_length_stops_at_the_first_difference() -> None:
    """A later token that happens to be the same again does not count."""
    prompts = windows([[0, 1], [2, 3], [4, 5]])
    reference = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]], np.int32)
    ours = np.array([[1, 2, 3, 4], [1, 9, 3, 4], [9, 2, 3, 4]], np.int32)
    found = agreement.compare(ours, reference, prompts)
    assert found.length.value == pytest.approx((4 + 1 + 0) / 3)
    assert found.identical.value == pytest.approx(1 / 3)
    assert (found.prompts, found.tokens) == (3, 4)


def test_continuations_begin_after_the_prompt() -> None:
    """A model that always says the next number."""
    table = np.roll(np.eye(8, dtype=np.float32), 1, axis=1)
    prompts = agreement.prompts(windows([[0, 1, 7, 7], [2, 3, 7, 7], [4, 5, 7, 7]]), 2, 2)
    assert prompts.ids.tolist() == [[0, 1], [4, 5]]
    assert agreement.continuations(TableRunner(table), prompts, 3).tolist() == [[2, 3, 4], [6, 7, 0]]


def test_margins_are_those_of_the_answer() -> None:
    """Row t of the table follows token t, and is t nats sure of token t + 1."""
    table = np.roll(np.eye(8, dtype=np.float32), 1, axis=1) * np.arange(8, dtype=np.float32)[:, None]
    prompts = windows([[5, 1], [5, 3]])
    greedy = agreement.continuations(TableRunner(table), prompts, 3)
    assert agreement.margins(TableRunner(table), prompts, greedy).tolist() == [[1, 2, 3], [3, 4, 5]]


def test_prompts_longer_than_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="prompts of 5 tokens cannot be taken from windows of 4"):
        agreement.prompts(windows([[0, 1, 2, 3]]), 1, 5)
