"""Intervals against closed forms, and against how often they hold the truth."""

import numpy as np
import pytest

from evals.statistics import (
    Estimate,
    clustered_mean,
    clustered_quantiles,
    clustered_share,
    exponential,
    least_sample,
    quantile,
    scaled,
    square_root,
)


def ends(of: Estimate) -> tuple[float, float]:
    assert of.low is not None
    assert of.high is not None
    return of.low, of.high


def test_a_mean_of_independent_values_has_students_interval() -> None:
    """1, 2, 4, 8: mean 3.75, standard deviation 3.0957, t(3) at 97.5 % is 3.18245."""
    result = clustered_mean(np.array([[1.0], [2.0], [4.0], [8.0]]), np.arange(4, dtype=np.int32))
    assert result.value == 3.75
    assert result.standard_error == pytest.approx(3.095696 / 2)
    assert ends(result) == pytest.approx((3.75 - 3.182446 * 1.547848, 3.75 + 3.182446 * 1.547848))


def test_clustering_counts_documents_not_tokens() -> None:
    """Ten copies of each document's rows must not narrow the interval: they bring no new documents."""
    values = np.array([[1.0], [2.0], [4.0], [8.0]])
    clusters = np.arange(4, dtype=np.int32)
    once = clustered_mean(values, clusters)
    copied = clustered_mean(np.repeat(values, 10, axis=0), np.repeat(clusters, 10))
    assert ends(copied) == pytest.approx(ends(once))


@pytest.mark.parametrize("documents", [5, 40])
def test_the_interval_of_a_mean_covers_the_truth(documents: int) -> None:
    """Over many draws with strong correlation inside documents, it holds the true mean 95 times in 100."""
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(600):
        offsets = random.normal(size=documents).repeat(5)[:, None]
        values = offsets + random.normal(size=(5 * documents, 3))
        low, high = ends(clustered_mean(values, np.arange(documents, dtype=np.int32).repeat(5)))
        hits += low < 0 < high
    assert 0.92 < hits / 600 < 0.975


def test_the_interval_of_a_median_covers_the_truth() -> None:
    """The bootstrap is a little narrow with 40 clusters, never by much."""
    random = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        values = random.normal(size=40).repeat(4)[:, None] + random.normal(size=(160, 2))
        (median,) = clustered_quantiles(values, np.arange(40, dtype=np.int32).repeat(4), (0.5,))
        low, high = ends(median)
        hits += low < 0 < high
    assert 0.90 < hits / 200 < 0.99


def test_quantiles_are_those_of_all_values_together() -> None:
    values = np.random.default_rng(3).exponential(size=(12, 50))
    found = clustered_quantiles(values, np.arange(12, dtype=np.int32), (0.5, 0.99))
    assert [one.value for one in found] == [float(np.quantile(values, q)) for q in (0.5, 0.99)]
    for one in found:
        low, high = ends(one)
        assert low <= one.value <= high
    assert found == clustered_quantiles(values, np.arange(12, dtype=np.int32), (0.5, 0.99)), "always the same draws"


def test_one_cluster_has_no_interval() -> None:
    clusters = np.zeros(3, dtype=np.int32)
    (median,) = clustered_quantiles(np.ones((3, 2)), clusters, (0.5,))
    for one in (clustered_mean(np.ones((3, 2)), clusters), median, exponential(median), square_root(median)):
        assert (one.standard_error, one.low, one.high) == (None, None, None)


def test_a_share_stays_a_share() -> None:
    values = np.array([[True, True], [True, True], [True, False]])
    low, high = ends(clustered_share(values, np.arange(3, dtype=np.int32)))
    assert 0 <= low < 5 / 6 < high == 1


def test_transformed_estimates_keep_their_ends() -> None:
    one = Estimate(value=4.0, standard_error=0.8, low=-1.0, high=9.0)
    assert square_root(one) == Estimate(value=2.0, standard_error=0.2, low=0.0, high=3.0)
    assert scaled(one, 10) == Estimate(value=40.0, standard_error=8.0, low=-10.0, high=90.0)
    assert exponential(one).high == pytest.approx(np.exp(9))


@pytest.mark.parametrize("probability", [0.5, 0.9, 0.95, 0.99])
def test_a_quantile_is_given_from_the_smallest_sample_that_can_enclose_it(probability: float) -> None:
    """The largest of n values lies below the quantile with probability p^n, which 2.5 % are left for."""
    least = least_sample(probability)
    assert probability**least <= 0.025 < probability ** (least - 1)
    values = np.random.default_rng(0).random(least)
    found = quantile(values, probability)
    assert found is not None
    assert found.high == values.max()
    assert quantile(values[1:], probability) is None


def test_a_quantiles_interval_holds_it_as_often_as_it_says() -> None:
    """By the binomial's table, the 18th and 33rd of 50 values enclose the median in 96.7 % of samples."""
    random = np.random.default_rng(0)
    assert quantile(np.arange(50, dtype=np.float64), 0.5) == Estimate(value=24.5, low=17.0, high=32.0)
    held = 0
    for _ in range(2000):
        low, high = ends(quantile(random.exponential(size=60), 0.9) or Estimate(value=0))
        held += low <= -np.log(0.1) <= high
    assert 0.94 < held / 2000 < 1
