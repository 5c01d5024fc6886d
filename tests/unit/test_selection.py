"""Gates by interval, the ranking, and what it says when nothing passes."""

from dataclasses import replace

import pytest

from evals.load import Exchange, Slo, summarize
from evals.perplexity import Perplexity
from evals.statistics import Estimate
from pipeline import metrics
from pipeline.metrics import METRICS, Measured
from pipeline.params import Bound, Objective, SelectionParams
from pipeline.records import Gate, Latency, Quality, Served, Tasks
from pipeline.records.measurements import level
from pipeline.report import table
from pipeline.stages import selection
from pipeline.stages.selection import gate
from tests.support.disturbed import BUSY, QUIET, watched

STREAMS = 2


def served(rate: float) -> Served:
    """Two levels, of one stream and of two, at so many tokens/s in all, TTFT being half of each answer's time."""
    levels = []
    for streams in (1, STREAMS):
        wait = 2 * streams / rate
        exchanges = [
            Exchange(
                start_seconds=number * wait, chunk_seconds=(number * wait + wait / 2, number * wait + wait),
                end_seconds=number * wait + wait, prompt_tokens=1, completion_tokens=2,
            )
            for number in range(6) for _ in range(streams)
        ]  # fmt: skip
        slo = Slo(ttft_seconds=1, tpot_seconds=1)
        levels.append(summarize(exchanges, concurrency=streams, slo=slo))
    return Served(
        engine="llama_cpp",
        runtime="r", slots=STREAMS, context_tokens=64, prompt_tokens=1, output_tokens=2, load_seconds=3,
        peak_rss_bytes=5, levels=tuple(levels),
    )  # fmt: skip


def measured(name: str, *, ratio: float, size: int, rate: float, reach: float = 0.0) -> Measured:
    """An artifact whose perplexity ratio has an interval of `reach` to both sides, from 64 windows."""
    perplexity = Perplexity(
        tokens=100,
        nll=Estimate(value=1),
        perplexity=Estimate(value=10 * ratio),
        bits_per_byte=Estimate(value=1),
    )
    interval = Estimate(value=ratio, standard_error=reach / 2, low=ratio - reach, high=ratio + reach)
    quality = Quality(name=name, artifact="d", windows=64, perplexity=perplexity, perplexity_ratio=interval, bytes=size)
    return Measured(
        quality=quality,
        latency=Latency(name=name, artifact="d", served=served(rate)),
        tasks=Tasks(name=name, artifact="d"),
        concurrency=STREAMS,
    )


GOOD = measured("good", ratio=1.001, size=800, rate=50)
FAST = measured("fast", ratio=1.05, size=300, rate=90)
SLOW = measured("slow", ratio=1.002, size=900, rate=40)
GONE = Measured(
    quality=Quality(name="gone", artifact="d", unavailable="no such architecture"),
    latency=Latency(name="gone", artifact="d", unavailable="no such architecture"),
    tasks=Tasks(name="gone", artifact="d", unavailable="no such architecture"),
    concurrency=STREAMS,
)
FASTEST = Objective(metric="served_output_tokens_per_second", direction="maximize")
WITHIN_ONE_PERCENT = SelectionParams(
    concurrency=STREAMS, objective=FASTEST, constraints={"perplexity_ratio": Bound(at_most=1.01)}
)


def test_the_best_by_the_objective_wins_among_those_that_pass() -> None:
    result = selection.select(WITHIN_ONE_PERCENT, [GONE, FAST, SLOW, GOOD])
    assert result.winner == "good"
    assert [(one.name, one.rank) for one in result.ranking] == [
        ("good", 1),
        ("slow", 2),
        ("fast", None),
        ("gone", None),
    ]
    (missed,) = result.ranking[2].missed
    assert missed == Gate(
        metric="perplexity_ratio",
        relation="at_most",
        limit=1.01,
        found=Estimate(value=1.05, standard_error=0, low=1.05, high=1.05),
        verdict="fails",
    )
    assert result.pareto_front == ("fast", "good")


def test_a_value_within_the_limit_does_not_pass_while_its_interval_reaches_beyond() -> None:
    unsure = measured("unsure", ratio=1.008, size=300, rate=90, reach=0.004)
    result = selection.select(WITHIN_ONE_PERCENT, [unsure, GOOD])
    assert result.winner == "good"
    (missed,) = result.ranking[1].missed
    assert missed.verdict == "not enough data"
    assert missed.more == 3 * 64, "half the reach needs four times the windows"


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict", "more"),
    [
        (0.95, 0.94, 0.96, "passes", None),
        (0.85, 0.80, 0.89, "fails", None),
        (0.91, 0.88, 0.94, "not enough data", 800),
        (0.89, 0.85, 0.92, "not enough data", 800),
        (0.90, 0.88, 0.92, "not enough data", None),
    ],
)
def test_at_least(value: float, low: float, high: float, verdict: str, more: int | None) -> None:
    found = Estimate(value=value, low=low, high=high)
    result = gate(METRICS["top1_agreement"], "at_least", 0.9, found, 100)
    assert result.verdict == verdict
    assert result.more == (None if more is None else pytest.approx(more, abs=1))


def test_a_figure_without_an_interval_is_held_by_its_value() -> None:
    assert gate(METRICS["bytes"], "at_most", 800, Estimate(value=800), None).verdict == "passes"
    assert gate(METRICS["bytes"], "at_most", 799, Estimate(value=800), None).verdict == "fails"


def test_without_constraints_the_objective_decides_alone() -> None:
    assert (
        selection.select(SelectionParams(concurrency=STREAMS, objective=FASTEST), [GOOD, FAST, SLOW]).winner == "fast"
    )
    smallest = Objective(metric="bytes", direction="minimize")
    assert (
        selection.select(SelectionParams(concurrency=STREAMS, objective=smallest), [GOOD, FAST, SLOW]).winner == "fast"
    )


def test_a_metric_that_was_not_measured_passes_no_gate() -> None:
    wanted = SelectionParams(concurrency=STREAMS, objective=FASTEST, constraints={"load_seconds": Bound(at_most=1)})
    result = selection.select(wanted, [GOOD])
    assert result.winner is None
    assert result.ranking[0].missed[0].verdict == "not measured"


def test_the_nearest_miss_is_the_one_that_misses_by_the_smallest_share() -> None:
    wanted = SelectionParams(
        concurrency=STREAMS, objective=FASTEST, constraints={"perplexity_ratio": Bound(at_most=1.0005)}
    )
    message = selection._nearest_miss(selection.select(wanted, [FAST, SLOW, GOOD, GONE]))
    assert "nearest miss is good" in message
    assert "1.001" in message
    assert "1.0005" in message


def test_nothing_measured_has_no_nearest_miss() -> None:
    result = selection.select(SelectionParams(concurrency=STREAMS, objective=FASTEST), [GONE])
    assert result.winner is None
    assert "no artifact was measured" in selection._nearest_miss(result)


def test_served_metrics_are_those_of_the_target_concurrency() -> None:
    at_one = metrics.values(replace(GOOD, concurrency=1))
    at_two = metrics.values(GOOD)
    for found, streams in ((at_one, 1), (at_two, STREAMS)):
        values = {name: one.value for name, one in found.items() if one is not None}
        assert values["served_output_tokens_per_second"] == pytest.approx(50)
        assert values["served_requests_per_second"] == pytest.approx(25)
        assert values["served_ttft_seconds_p50"] == pytest.approx(streams / 50)
        assert values["served_end_to_end_seconds_p50"] == pytest.approx(2 * streams / 50)
        assert values["served_goodput_requests_per_second"] == pytest.approx(25)
        assert (values["served_load_seconds"], values["served_peak_rss_bytes"]) == (3, 5)
    assert at_one["served_ttft_seconds_p99"] is None, "of a handful of requests"
    assert set(at_one) >= set(METRICS), "all that params.yaml may name"


def test_a_gate_on_a_served_metric_counts_requests() -> None:
    bound = Bound(at_least=24.5)
    wanted = SelectionParams(
        concurrency=STREAMS, objective=FASTEST, constraints={"served_goodput_requests_per_second": bound}
    )
    result = selection.select(wanted, [GOOD])
    (missed,) = result.ranking[0].missed
    assert missed.verdict == "not enough data"
    assert missed.more is not None
    assert f"{missed.more:,} more requests" in table.missed(missed)


@pytest.mark.parametrize(
    ("metric", "relation", "value", "verdict"),
    [
        ("served_output_tokens_per_second", "at_least", 50, "passes"),
        ("served_output_tokens_per_second", "at_least", 30, "busy machine"),
        ("served_ttft_seconds_p50", "at_most", 30, "passes"),
        ("served_ttft_seconds_p50", "at_most", 50, "busy machine"),
        ("price_per_million_tokens", "at_most", 50, "busy machine"),
        ("served_ttft_seconds_p50", "at_least", 30, "fails"),
        ("served_ttft_seconds_p50", "at_least", 50, "busy machine"),
    ],
)
def test_of_a_busy_machines_figures_only_what_a_quiet_one_would_confirm_counts(
    metric: str, relation: str, value: float, verdict: str
) -> None:
    found = Estimate(value=value, low=value - 5, high=value + 5)
    result = gate(METRICS[metric], relation, 40, found, 24, "other processes ran")
    assert (result.verdict, result.more, result.doubt) == (verdict, None, "other processes ran")
    assert (table.noticed([result]) or "good") == {"passes": "good", "fails": "bad"}.get(verdict, "unsure")


def test_an_artifact_that_misses_a_gate_on_a_busy_machine_does_not_win_and_is_told_apart() -> None:
    at_least = {"served_output_tokens_per_second": Bound(at_least=45)}
    wanted = SelectionParams(concurrency=STREAMS, objective=FASTEST, constraints=at_least)
    hurt = {level(STREAMS): watched(QUIET, BUSY), level(1): watched(QUIET)}
    disturbed = replace(SLOW, latency=SLOW.latency.model_copy(update={"watched": hurt}))
    result = selection.select(wanted, [disturbed, GOOD])
    assert [(one.name, one.rank) for one in result.ranking] == [("good", 1), ("slow", None)]
    slow = result.ranking[1]
    assert slow.disturbed == {"served": "other processes ran (cc1plus) 1.00 of 2 processors"}
    assert [metric.doubt(slow) is not None for metric in METRICS.values()] == [
        metric.startswith("price") or (metric.startswith("served_") and "load" not in metric and "peak" not in metric)
        for metric in METRICS
    ]
    assert table.verdict(slow, "good").endswith("limit at least 45: cannot tell, it was measured on a busy machine")
    assert selection.select(WITHIN_ONE_PERCENT, [disturbed]).winner == "slow", "quality does not depend on the load"
