import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import log_softmax, softmax

from containers.engines.contract import Sampling
from containers.engines.sampling import Sampler, likeliest

DRAWS = 4000


def logits(size: int = 50, spread: float = 2.0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(3).normal(0, spread, size).astype(np.float32)


def drawn(row: npt.NDArray[np.float32], sampling: Sampling) -> npt.NDArray[np.int64]:
    sampler = Sampler(sampling)
    return np.bincount([sampler.pick(row) for _ in range(DRAWS)], minlength=len(row))


def nucleus(probabilities: npt.NDArray[np.float64], top_p: float) -> set[int]:
    """The definition, token by token."""
    kept, total = set(), 0.0
    for id_ in np.argsort(-probabilities, kind="stable"):
        kept.add(int(id_))
        total += probabilities[id_]
        if total >= top_p:
            break
    return kept


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_come_as_often_as_they_are_likely(temperature: float) -> None:
    row = logits()
    expected = DRAWS * softmax(row.astype(np.float64) / temperature)
    counts = drawn(row, Sampling(max_tokens=1, temperature=temperature, seed=1))
    often = expected > 5
    # Pearson's statistic: its mean is the number of cells, its variance twice that.
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum()
    assert statistic < often.sum() + 4 * np.sqrt(2 * often.sum())


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.0, 2.0, 8.0])
def test_top_p_draws_from_the_smallest_set_that_reaches_it(top_p: float, spread: float) -> None:
    row = logits(spread=spread)
    kept = nucleus(softmax(row.astype(np.float64)), top_p)
    counts = drawn(row, Sampling(max_tokens=1, top_p=top_p, seed=2))
    assert set(np.flatnonzero(counts)) <= kept
    assert counts[max(kept, key=lambda id_: row[id_])] > 0


def test_zero_and_tiny_temperatures_take_the_likeliest() -> None:
    row = logits()
    for temperature in (0.0, 1e-3, 1e-300):
        sampler = Sampler(Sampling(max_tokens=1, temperature=temperature))
        assert {sampler.pick(row) for _ in range(50)} == {int(row.argmax())}


def test_tokens_that_cannot_come_never_do() -> None:
    row = logits()
    row[::2] = -np.inf
    for top_p in (0.9, 1.0):
        assert not drawn(row, Sampling(max_tokens=1, temperature=2, top_p=top_p, seed=0))[::2].any()


@pytest.mark.parametrize("seed", [0, 7, -7, 2**70])
def test_a_seed_repeats_its_draws(seed: int) -> None:
    row = logits()
    first, second = (Sampler(Sampling(max_tokens=1, seed=seed)) for _ in range(2))
    picked = [first.pick(row) for _ in range(40)]
    assert [second.pick(row) for _ in range(40)] == picked
    other = Sampler(Sampling(max_tokens=1, seed=seed + 1))
    assert [other.pick(row) for _ in range(40)] != picked


def test_without_a_seed_draws_differ() -> None:
    row = logits()
    first, second = (Sampler(Sampling(max_tokens=1)) for _ in range(2))
    assert [first.pick(row) for _ in range(40)] != [second.pick(row) for _ in range(40)]


@pytest.mark.parametrize("count", [0, 1, 5, 50, 60])
def test_log_probabilities_are_of_the_whole_distribution(count: int) -> None:
    row = logits()
    expected = log_softmax(row.astype(np.float64))
    logprob, candidates = likeliest(row, 11, count)
    assert logprob == pytest.approx(expected[11], abs=1e-6)
    assert [id_ for id_, _ in candidates] == list(np.argsort(-row)[:count])
    np.testing.assert_allclose([value for _, value in candidates], np.sort(expected)[::-1][:count], atol=1e-6)
