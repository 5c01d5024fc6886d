"""What changed between two runs, against closed forms, and how often an interval holds the truth."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from evals import changes
from evals.answers import Outcome
from evals.statistics import Estimate, clustered_mean, exponential
from evals.tokens import Tokens
from pipeline import metrics
from pipeline.comparison.judge import judge
from pipeline.metrics import METRICS
from tests.support.runs import Made, tokens


def ends(of: Estimate | None) -> tuple[float, float]:
    assert of is not None
    assert of.low is not None
    assert of.high is not None
    return of.low, of.high


def test_figures_of_tokens_come_back_as_they_were_written(tmp_path: Path) -> None:
    made = tokens(Made(loss=0.1))
    made.save(tmp_path / "one" / "a.npz")
    made.save(tmp_path / "two.npz")
    assert (tmp_path / "one" / "a.npz").read_bytes() == (tmp_path / "two.npz").read_bytes(), "for DVC's sake"
    found = Tokens.load(tmp_path / "two.npz")
    assert (found.text, found.reference) == ("text", "reference")
    for name in ("nll", "kld", "same", "clusters", "greedy", "margins"):
        assert np.array_equal(getattr(found, name), getattr(made, name))
    Tokens.none().save(tmp_path / "none.npz")
    assert Tokens.load(tmp_path / "none.npz").nll.size == 0


def test_a_known_loss_is_found_though_the_text_varies_far_more() -> None:
    """0.02 nats more on every token are a perplexity 2.02 % higher; unpaired, the text's own variance hides them."""
    before, after = tokens(Made(noise=0.01)), tokens(Made(loss=0.02, noise=0.01, content=b"other"))
    old, new = (exponential(clustered_mean(one.nll.astype(np.float64), before.clusters)) for one in (before, after))
    paired = changes.of_tokens("perplexity", old, before, after)
    assert paired is not None
    assert paired.value == pytest.approx(new.value - old.value, rel=1e-4)
    low, high = ends(paired)
    assert low < old.value * math.expm1(0.02) < high
    assert high - low < 0.2 * paired.value
    low, high = ends(changes.difference(new, old))
    assert low < 0 < high


def test_each_metric_changes_by_the_difference_of_its_values() -> None:
    before, after = tokens(Made(loss=0.1, noise=0.2)), tokens(Made(loss=0.3, noise=0.1, content=b"other"))
    means = [
        {
            "log_perplexity_ratio": float(one.nll.mean(dtype=np.float64)),
            "kld_mean": float(one.kld.mean(dtype=np.float64)),
            "top1_agreement": float(one.same.mean()),
            "delta_p_mean": float(np.exp(-one.nll.astype(np.float64)).mean()),
            "bits_per_byte": float(one.nll.mean(dtype=np.float64)) / 3,
        }
        for one in (before, after)
    ]
    for metric, old in means[0].items():
        found = changes.of_tokens(metric, Estimate(value=old), before, after)
        assert found is not None
        assert found.value == pytest.approx(means[1][metric] - old, abs=1e-7), metric


def test_only_the_same_text_and_the_same_reference_are_paired() -> None:
    old, before = Estimate(value=20.0), tokens(Made())
    another_text, another_reference = tokens(Made(), text="b"), tokens(Made(), reference="b")
    assert changes.of_tokens("perplexity", old, before, another_text) is None
    assert changes.of_tokens("kld_mean", old, before, another_reference) is None
    assert changes.of_tokens("perplexity", old, before, another_reference) is not None
    assert changes.of_tokens("kld_p99", old, before, before) is None, "no mean over tokens"
    assert changes.of_tokens("perplexity", old, Tokens.none(), Tokens.none()) is None


def test_nothing_changed_is_a_change_of_nothing() -> None:
    made = tokens(Made(loss=0.1))
    for metric in changes.PAIRED:
        found = changes.of_tokens(metric, Estimate(value=2.0), made, made)
        assert found is not None
        assert (found.value, found.low, found.high) == (0, 0, 0)


def test_answers_are_paired_by_document() -> None:
    """One of four documents is lost and none won: -1/4, by hand with t(3) = 3.18245 and s = 1/2."""
    right = [Outcome(document=str(number), chosen="a", correct=True) for number in range(4)]
    lost = [*right[:3], dataclasses.replace(right[3], correct=False)]
    found = changes.of_answers(right, lost)
    assert found is not None
    assert found.value == -0.25
    assert ends(found) == pytest.approx((-0.25 - 3.18245 * 0.25, -0.25 + 3.18245 * 0.25), abs=1e-5)
    assert changes.of_answers(right, lost[::-1]) is None, "another order is another document"
    assert changes.of_answers([dataclasses.replace(right[0], correct=None)], right[:1]) is None


def test_unpaired_intervals_add_up_like_independent_errors_and_hold_the_truth() -> None:
    one, other = Estimate(value=10.0, low=7.0, high=11.0), Estimate(value=6.0, low=5.0, high=10.0)
    assert ends(changes.difference(one, other)) == pytest.approx((4 - 5.0, 4 + math.hypot(1, 1)))
    random, held = np.random.default_rng(0), 0
    clusters = np.arange(20, dtype=np.int32)
    for _ in range(400):
        first, second = (clustered_mean(random.exponential(mean, (20, 1)), clusters) for mean in (1.0, 2.0))
        low, high = ends(changes.difference(second, first))
        held += low < 1.0 < high
    assert 0.90 < held / 400 < 0.99


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.02, 0.03, "worse"),
        (-0.03, -0.02, "better"),
        (-0.005, 0.008, "same"),
        (0.005, 0.02, "unclear"),
        (-0.02, 0.02, "unclear"),
    ],
)
def test_a_verdict_is_that_of_the_whole_interval(low: float, high: float, verdict: str) -> None:
    less = dataclasses.replace(METRICS["kld_mean"], better="less", margin=0.01)
    more = dataclasses.replace(less, better="more")
    value = (low + high) / 2
    assert judge(less, Estimate(value=5.0), Estimate(value=value, low=low, high=high)) == verdict
    assert judge(more, Estimate(value=5.0), Estimate(value=-value, low=-high, high=-low)) == verdict
    relative = dataclasses.replace(less, margin=0.002, scale="%")
    assert judge(relative, Estimate(value=5.0), Estimate(value=value, low=low, high=high)) == verdict


def test_a_figure_without_an_interval_is_clear_only_where_it_is_exact() -> None:
    exact, sampled = METRICS["bytes"], METRICS["kld_maximum"]
    assert judge(exact, Estimate(value=100.0), Estimate(value=1.0)) == "worse"
    assert judge(exact, Estimate(value=100.0), Estimate(value=0.0)) == "same"
    assert judge(sampled, Estimate(value=100.0), Estimate(value=1.0)) == "unclear"
    assert judge(sampled, Estimate(value=100.0), Estimate(value=0.0)) == "same"


def test_what_is_better_of_every_metric() -> None:
    names = (*METRICS, "accuracy.cloze", "flips.cloze")
    more = {name for name in names if metrics.named(name).better == "more"}
    assert more == {
        *("chat_template_agreement", "top1_agreement", "delta_p_mean", "greedy_identical", "greedy_length"),
        *("prefill_tokens_per_second", "decode_tokens_per_second", "served_output_tokens_per_second"),
        *("served_requests_per_second", "served_goodput_requests_per_second", "accuracy.cloze"),
    }
