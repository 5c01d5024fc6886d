import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from evals import perplexity
from evals.runner import Ids, Logits
from evals.scoring import score
from evals.statistics import exponential
from evals.windows import Windows
from tests.support.fakes import TableRunner, windows


def test_uniform_logits_give_the_vocabulary_size() -> None:
    text = windows([[0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0]])
    nll = score(TableRunner(np.zeros((8, 8), dtype=np.float32)), text)
    result = perplexity.summarize(nll, text)
    assert result.tokens == 14
    assert result.perplexity.value == pytest.approx(8)
    assert result.bits_per_byte.value == pytest.approx(14 * 3 / (2 * 7 * 4))
    assert result.perplexity.standard_error == pytest.approx(0)


def test_each_target_is_scored_against_its_own_row_across_block_borders() -> None:
    """A shift by one row, or a block counted twice, would change some of these."""
    random = np.random.default_rng(0)
    table = random.normal(size=(6, 6)).astype(np.float32) * 5
    ids = [0, 3, 1, 4, 4, 2, 5, 0, 1]
    nll = score(TableRunner(table, block_rows=4), windows([ids]))
    expected = []
    for before, after in pairwise(ids):
        row = table[before].astype(np.float64)
        expected.append(math.log(np.exp(row).sum()) - row[after])
    np.testing.assert_allclose(nll[0], expected, rtol=1e-5)


def test_logits_far_from_zero_do_not_overflow() -> None:
    table = np.full((4, 4), -3e4, dtype=np.float32)
    table[:, 1] = 3e4
    nll = score(TableRunner(table), windows([[0, 1, 1, 0]]))
    np.testing.assert_allclose(nll[0], [0, 0, 6e4])


def test_nan_logits_are_refused() -> None:
    table = np.zeros((4, 4), dtype=np.float32)
    table[2, 0] = np.nan
    with pytest.raises(ValueError, match="1 tokens got a log-probability that is not finite"):
        score(TableRunner(table), windows([[0, 2, 1, 3]]))


def test_missing_rows_are_refused() -> None:
    class Short(TableRunner):
        def logits(self, ids: Ids) -> Iterator[Logits]:
            yield self.table[ids[:-2]]

    with pytest.raises(ValueError, match="gave 2 rows of logits for a window of 4 tokens"):
        score(Short(np.zeros((4, 4), dtype=np.float32)), windows([[0, 1, 2, 3]]))


def test_ratio_is_paired() -> None:
    """Texts of very different difficulty, each worse by the same 1 %: the pairing leaves no error at all."""
    text = windows([[0, 1], [1, 0], [0, 0]])
    reference = np.array([[0.1], [2.0], [7.0]])
    result = exponential(perplexity.log_ratio(reference + math.log(1.01), reference, text))
    assert result.value == pytest.approx(1.01)
    assert result.standard_error == pytest.approx(0, abs=1e-12)
    assert result.low == pytest.approx(1.01)
    assert result.high == pytest.approx(1.01)


def test_windows_come_back_and_give_the_same_bytes(tmp_path: Path) -> None:
    text = windows([[1, 2, 3], [4, 5, 6]], document=[0, 3], utf8_bytes=[7, 9])
    for name in ("a.npz", "b.npz"):
        text.save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = Windows.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(loaded.ids, text.ids)
    assert loaded.document.tolist() == [0, 3]
    assert loaded.utf8_bytes.tolist() == [7, 9]
