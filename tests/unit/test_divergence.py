"""Divergences from stored hidden states against the textbook formula in float64."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from evals import divergence, head
from evals.divergence import Comparison
from evals.head import Shape
from evals.runner import Logits
from evals.scoring import log_normalizer, score
from tests.support.fakes import TableRunner, windows

TEXT = windows([[0, 3, 1, 4], [2, 2, 5, 0], [1, 0, 3, 3]])


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    result: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return result


def reference(folder: Path, shape: Shape = Shape(), bias: bool = False) -> Logits:  # noqa: B008 (frozen)
    """Write a reference whose hidden state after token t is row t of a table; return its logits after each token."""
    random = np.random.default_rng(0)
    table, weight = random.normal(size=(6, 8)).astype(np.float32), random.normal(size=(6, 8)).astype(np.float32)
    offsets = random.normal(size=6).astype(np.float32) if bias else None
    np.save(folder / "hidden.npy", table[TEXT.ids[:, :-1]])
    head.save(folder, weight, offsets, shape)
    product = table @ weight.T + (0 if offsets is None else offsets)
    return head.shaped(product.astype(np.float32), shape)


@pytest.mark.parametrize("shape", [Shape(), Shape(scale=0.25), Shape(cap=2.0)], ids=["plain", "scaled", "capped"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_divergence_is_the_textbooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Shape, bias: bool) -> None:
    """The vocabulary comes in parts of two tokens, the logits in blocks of two rows: neither may show."""
    p = reference(tmp_path, shape, bias)
    q = p + np.random.default_rng(1).normal(scale=0.3, size=p.shape).astype(np.float32)
    monkeypatch.setattr(head, "WORK_BYTES", 2 * 4 * 8)
    comparison = Comparison(tmp_path)
    score(TableRunner(q, block_rows=2), TEXT, comparison.observe)
    lp, lq = log_softmax(p), log_softmax(q)
    expected = (np.exp(lp) * (lp - lq)).sum(axis=1)[TEXT.ids[:, :-1]]
    np.testing.assert_allclose(comparison.kld, expected, rtol=1e-4)
    np.testing.assert_array_equal(comparison.same, (p.argmax(1) == q.argmax(1))[TEXT.ids[:, :-1]])


def test_tiny_divergences_come_out(tmp_path: Path) -> None:
    """A difference of 1e-4 in the logits is a divergence of about 5e-9: not lost among logits of 30."""
    p = reference(tmp_path)
    np.save(tmp_path / "hidden.npy", 10 * np.load(tmp_path / "hidden.npy"))
    p, shift = 10 * p, np.random.default_rng(2).normal(scale=1e-3, size=p.shape).astype(np.float32)
    comparison = Comparison(tmp_path)
    score(TableRunner(p + shift), TEXT, comparison.observe)
    lp, lq = log_softmax(p), log_softmax(p + shift)
    expected = (np.exp(lp) * (lp - lq)).sum(axis=1)[TEXT.ids[:, :-1]]
    np.testing.assert_allclose(comparison.kld, expected, atol=2e-9)


def test_the_reference_does_not_diverge_from_itself(tmp_path: Path) -> None:
    p = reference(tmp_path)
    comparison = Comparison(tmp_path)
    nll = score(TableRunner(p), TEXT, comparison.observe)
    found = divergence.summarize(comparison, nll, nll, TEXT)
    assert found.maximum < 1e-7
    assert found.top1_agreement.value == 1
    assert (found.delta_p_mean.value, found.delta_p_rms.value) == (0, 0)


def test_delta_p_is_the_change_of_the_true_tokens_probability(tmp_path: Path) -> None:
    reference(tmp_path)
    comparison = Comparison(tmp_path)
    nll = score(TableRunner(np.zeros((6, 6), np.float32)), TEXT, comparison.observe)
    certain = np.zeros_like(nll)
    found = divergence.summarize(comparison, nll, certain, TEXT)
    assert found.delta_p_mean.value == pytest.approx(1 / 6 - 1)
    assert found.delta_p_rms.value == pytest.approx(5 / 6)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_token_that_is_ruled_out_has_no_finite_divergence(tmp_path: Path) -> None:
    table = reference(tmp_path)
    table[:, 0] = -np.inf
    spared = windows([[1, 3, 1, 4], [2, 2, 5, 1], [1, 2, 3, 3]])
    comparison = Comparison(tmp_path)
    nll = score(TableRunner(table), spared, comparison.observe)
    with pytest.raises(ValueError, match="9 tokens have a divergence that is not finite"):
        divergence.summarize(comparison, nll, nll, spared)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    reference(tmp_path)
    with pytest.raises(ValueError, match="has 7 tokens in its vocabulary, the reference 6"):
        score(TableRunner(np.zeros((7, 7), np.float32)), TEXT, Comparison(tmp_path).observe)


def test_bfloat16_comes_back_from_its_bits() -> None:
    values = np.array([1.0, -2.5, 3.0e38, 2.0**-100], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    np.testing.assert_allclose(head.widen(bits), values, rtol=2**-7)


def test_normalizers_of_wide_rows_are_exact() -> None:
    """More rows and columns than one slab holds."""
    logits = np.random.default_rng(4).normal(scale=5, size=(40, 5000)).astype(np.float32)
    np.testing.assert_allclose(log_normalizer(logits), np.log(np.exp(logits.astype(np.float64)).sum(axis=1)), rtol=1e-6)
