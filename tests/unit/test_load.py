"""The figures of a load, on samples whose answers can be worked out by hand."""

import math
from itertools import pairwise

import pytest

from evals.load import Exchange, Level, Slo, summarize

LAX = Slo(ttft_seconds=60, tpot_seconds=60)


def exchange(start: float = 0.0, *, ttft: float = 0.1, gap: float = 0.01, tokens: int = 5, chunks: int = 5) -> Exchange:
    """An answer in pieces of equal distance; it ends 1 ms after the last."""
    arrivals = tuple(start + ttft + gap * number for number in range(chunks))
    return Exchange(
        start_seconds=start, chunk_seconds=arrivals, end_seconds=arrivals[-1] + 0.001, prompt_tokens=7,
        completion_tokens=tokens,
    )  # fmt: skip


def loop(waits: list[list[float]]) -> list[Exchange]:
    """Streams one beside the other, each of answers that take so long from end to end."""
    exchanges = []
    for stream in waits:
        start = 0.0
        for wait in stream:
            exchanges.append(exchange(start, ttft=wait - 0.041, gap=0.01))
            start = exchanges[-1].end_seconds
    return exchanges


def summary(exchanges: list[Exchange], concurrency: int = 1, slo: Slo = LAX) -> Level:
    return summarize(exchanges, concurrency=concurrency, slo=slo)


def test_one_request() -> None:
    one = exchange(2.0, ttft=0.5, gap=0.02)
    assert one.ttft_seconds == pytest.approx(0.5)
    assert one.tpot_seconds == pytest.approx(0.02)
    assert one.itl_seconds == pytest.approx((0.02,) * 4)
    assert one.end_to_end_seconds == pytest.approx(0.5 + 4 * 0.02 + 0.001)


def test_a_chunk_of_several_tokens_leaves_tpot_and_takes_itl() -> None:
    merged = exchange(ttft=0.1, gap=0.02, tokens=9, chunks=5)
    assert merged.tpot_seconds == pytest.approx(4 * 0.02 / 8)
    assert merged.itl_seconds is None
    level = summary([exchange(float(number), gap=0.03) for number in range(10)] + [merged])
    assert level.itl_seconds.p50 is not None
    assert level.itl_seconds.p50.value == pytest.approx(0.03), "of the others alone"
    assert summary([merged] * 40).itl_seconds.p50 is None


def test_rates_are_of_the_wall_from_the_first_request_to_the_last_end() -> None:
    level = summary(loop([[0.5, 0.5, 0.5, 0.5], [0.4, 0.4, 0.4, 0.4]]), concurrency=2)
    assert level.wall_seconds == pytest.approx(2.0)
    assert level.output_tokens_per_second.value == pytest.approx(8 * 5 / 2.0)
    assert level.requests_per_second.value == pytest.approx(8 / 2.0)
    assert [one.start_seconds for one in level.exchanges] == sorted(one.start_seconds for one in level.exchanges)


def test_throughput_has_the_interval_of_the_mean_wait() -> None:
    """Waits of 1, 2, 4 and 8 s: mean 3.75, standard error 1.547848, t(3) at 97.5 % is 3.18245."""
    found = summary(loop([[1.0, 2.0, 4.0, 8.0, 3.75] * 4])).output_tokens_per_second
    assert found.low is not None
    assert found.high is not None
    assert 5 / found.high < 3.75 < 5 / found.low
    assert (found.low, found.value, found.high) == tuple(sorted((found.low, found.value, found.high)))
    wild = summary(loop([[1.0, 2.0, 4.0, 80.0]])).output_tokens_per_second
    assert wild.low is None, "an interval that reaches down to no wait at all has no upper end in tokens/s"


def test_waits_of_one_wave_are_one_observation() -> None:
    """Two streams whose waits go together tell as much as one."""
    waits = [1.0, 1.2, 0.9, 1.4, 1.1, 1.3]
    alone = summary(loop([waits]), concurrency=1).output_tokens_per_second
    together = summary(loop([waits, waits]), concurrency=2).output_tokens_per_second
    assert together.value == pytest.approx(2 * alone.value)
    for ends in ("low", "high"):
        assert getattr(together, ends) == pytest.approx(2 * getattr(alone, ends))


def test_goodput_counts_requests_that_keep_both_limits() -> None:
    slo = Slo(ttft_seconds=0.2, tpot_seconds=0.05)
    good = exchange(0.0, ttft=0.1, gap=0.01)
    late, slow = exchange(1.0, ttft=0.3, gap=0.01), exchange(2.0, ttft=0.1, gap=0.1)
    level = summary([good, late, slow, good], slo=slo)
    found = level.goodput_requests_per_second
    assert found.value == pytest.approx(2 / level.wall_seconds)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.value < found.high < 4 / level.wall_seconds


@pytest.mark.parametrize(
    ("count", "known"), [(5, []), (6, ["p50"]), (36, ["p50", "p90"]), (72, ["p50", "p90", "p95"]), (367, 3), (368, 4)]
)
def test_quantiles_are_given_where_the_sample_encloses_them(count: int, known: list[str] | int) -> None:
    level = summary([exchange(float(number), ttft=0.1 + 0.001 * number) for number in range(count)])
    ttft = level.ttft_seconds
    found = [name for name in ("p50", "p90", "p95", "p99") if getattr(ttft, name) is not None]
    assert found == known or len(found) == known
    if ttft.p90 is not None:
        assert ttft.p90.low is not None
        assert ttft.p90.high is not None
        assert ttft.p90.low < 0.1 + 0.0009 * count < ttft.p90.high
    values = [estimate.value for name in found if (estimate := getattr(ttft, name))]
    assert all(less < more for less, more in pairwise(values))


def test_gaps_are_pooled_over_requests() -> None:
    level = summary([exchange(float(number), gap=0.01 * (1 + number % 2)) for number in range(20)])
    p50, p95 = level.itl_seconds.p50, level.itl_seconds.p95
    assert p50 is not None
    assert p95 is not None
    assert p50.low == pytest.approx(0.01)
    assert p50.high == pytest.approx(0.02)
    assert p95.value == pytest.approx(0.02)
    assert level.itl_seconds.p99 is None, "80 gaps are too few"
    assert all(math.isfinite(one.end_to_end_seconds) for one in level.exchanges)
