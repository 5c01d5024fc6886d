from pipeline.params import Bound, Objective, SelectionParams
from pipeline.records import Latency, Perplexities, Quality, Spread
from pipeline.stages import selection


def measured(name: str, *, ratio: float, size: int, decode: float) -> tuple[Quality, Latency]:
    perplexity = Perplexities(
        tokens=100,
        nll=1,
        nll_standard_error=None,
        perplexity=10 * ratio,
        perplexity_standard_error=None,
        bits_per_byte=1,
    )
    quality = Quality(name=name, artifact="d", perplexity=perplexity, perplexity_ratio=ratio, bytes=size)
    spread = Spread(median=decode, minimum=decode, maximum=decode)
    return quality, Latency(name=name, artifact="d", decode_tokens_per_second=spread)


GOOD = measured("good", ratio=1.001, size=800, decode=50)
FAST = measured("fast", ratio=1.05, size=300, decode=90)
SLOW = measured("slow", ratio=1.002, size=900, decode=40)
GONE = (
    Quality(name="gone", artifact="d", unavailable="no such architecture"),
    Latency(name="gone", artifact="d", unavailable="no such architecture"),
)
FASTEST = Objective(metric="decode_tokens_per_second", direction="maximize")


def test_the_best_by_the_objective_wins_among_those_that_pass() -> None:
    wanted = SelectionParams(objective=FASTEST, constraints={"perplexity_ratio": Bound(at_most=1.01)})
    result = selection.select(wanted, [GONE, FAST, SLOW, GOOD])
    assert result.winner == "good"
    assert [(one.name, one.rank) for one in result.ranking] == [
        ("good", 1),
        ("slow", 2),
        ("fast", None),
        ("gone", None),
    ]
    (failure,) = result.ranking[2].failures
    assert (failure.metric, failure.found, failure.limit, failure.relation) == (
        "perplexity_ratio",
        1.05,
        1.01,
        "at_most",
    )
    assert result.pareto_front == ("fast", "good")


def test_without_constraints_the_objective_decides_alone() -> None:
    assert selection.select(SelectionParams(objective=FASTEST), [GOOD, FAST, SLOW]).winner == "fast"
    smallest = Objective(metric="bytes", direction="minimize")
    assert selection.select(SelectionParams(objective=smallest), [GOOD, FAST, SLOW]).winner == "fast"


def test_a_metric_that_was_not_measured_fails_its_constraint() -> None:
    wanted = SelectionParams(objective=FASTEST, constraints={"load_seconds": Bound(at_most=1)})
    result = selection.select(wanted, [GOOD])
    assert result.winner is None
    assert result.ranking[0].failures[0].found is None


def test_the_limit_itself_passes() -> None:
    wanted = SelectionParams(objective=FASTEST, constraints={"bytes": Bound(at_most=800, at_least=800)})
    assert selection.select(wanted, [GOOD, FAST]).winner == "good"


def test_the_nearest_miss_is_the_one_that_misses_by_the_smallest_share() -> None:
    wanted = SelectionParams(objective=FASTEST, constraints={"perplexity_ratio": Bound(at_most=1.0005)})
    result = selection.select(wanted, [FAST, SLOW, GOOD, GONE])
    message = selection._nearest_miss(result)
    assert "nearest miss is good" in message
    assert "1.001" in message
    assert "1.0005" in message


def test_nothing_measured_has_no_nearest_miss() -> None:
    result = selection.select(SelectionParams(objective=FASTEST), [GONE])
    assert result.winner is None
    assert "no artifact was measured" in selection._nearest_miss(result)
