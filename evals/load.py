"""What a server's users wait for, by a closed loop: each of some streams sends its next request after its answer.

Of one request, with `chunks` the pieces of the answer that hold tokens:

    TTFT        first chunk - request sent
    TPOT        (last chunk - first chunk) / (completion tokens - 1)
    ITL         each gap between two chunks, where every chunk holds one token
    end-to-end  end of the answer - request sent

Of a level, which is all requests at one number of streams, with wall = the last end - the first request sent:

    output tokens/s  completion tokens / wall
    requests/s       requests / wall
    goodput          requests that kept both limits of the SLO / wall

Prompt and answer have fixed lengths, and token counts are the server's own usage. The client is evals/load_client.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from evals import statistics
from evals.statistics import Estimate

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Service level objective: what a request must keep to count as good."""

    ttft_seconds: float
    tpot_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its answer as the client saw them; times count from one moment for the whole level."""

    start_seconds: float
    chunk_seconds: tuple[float, ...]
    """When each piece of the answer that holds tokens arrived: at least one."""
    end_seconds: float
    prompt_tokens: int
    completion_tokens: int
    """At least two."""

    @property
    def ttft_seconds(self) -> float:
        """Time to first token."""
        return self.chunk_seconds[0] - self.start_seconds

    @property
    def tpot_seconds(self) -> float:
        """Time per output token after the first."""
        return (self.chunk_seconds[-1] - self.chunk_seconds[0]) / (self.completion_tokens - 1)

    @property
    def itl_seconds(self) -> tuple[float, ...] | None:
        """Inter-token latencies; None where some chunk holds more than one token, as one of a split character does."""
        if len(self.chunk_seconds) != self.completion_tokens:
            return None
        return tuple(later - earlier for earlier, later in pairwise(self.chunk_seconds))

    @property
    def end_to_end_seconds(self) -> float:
        """The whole wait."""
        return self.end_seconds - self.start_seconds

    def meets(self, slo: Slo) -> bool:
        """Whether it kept both limits."""
        return self.ttft_seconds <= slo.ttft_seconds and self.tpot_seconds <= slo.tpot_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Quantiles of one figure over a level's requests; None where the sample is too small for one."""

    p50: Estimate | None
    p90: Estimate | None
    p95: Estimate | None
    p99: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How a server did with so many streams at once."""

    concurrency: int
    wall_seconds: float
    output_tokens_per_second: Estimate
    requests_per_second: Estimate
    goodput_requests_per_second: Estimate
    ttft_seconds: Quantiles
    tpot_seconds: Quantiles
    itl_seconds: Quantiles
    end_to_end_seconds: Quantiles
    exchanges: tuple[Exchange, ...]
    """The raw times, in the order the requests were sent."""


def summarize(exchanges: Sequence[Exchange], *, concurrency: int, slo: Slo) -> Level:
    """Work out a level's figures.

    The intervals hold what differs from request to request within this run. Another run may meet a warmer processor or
    a busier neighbour, and no single run can tell.
    """
    ordered = sorted(exchanges, key=lambda one: one.start_seconds)
    wall = max(one.end_seconds for one in ordered) - ordered[0].start_seconds
    tokens = sum(one.completion_tokens for one in ordered)
    throughput = _throughput(ordered, concurrency, tokens / wall)
    good = statistics.share(sum(one.meets(slo) for one in ordered), len(ordered))
    return Level(
        concurrency=concurrency,
        wall_seconds=wall,
        output_tokens_per_second=throughput,
        requests_per_second=statistics.scaled(throughput, len(ordered) / tokens),
        goodput_requests_per_second=statistics.scaled(good, len(ordered) / wall),
        ttft_seconds=_quantiles([one.ttft_seconds for one in ordered]),
        tpot_seconds=_quantiles([one.tpot_seconds for one in ordered]),
        itl_seconds=_gap_quantiles(ordered, concurrency),
        end_to_end_seconds=_quantiles([one.end_to_end_seconds for one in ordered]),
        exchanges=tuple(ordered),
    )


def _throughput(ordered: Sequence[Exchange], concurrency: int, rate: float) -> Estimate:
    """Give tokens/s the interval of the mean end-to-end time.

    In a closed loop of N streams with answers of L tokens, tokens/s = N x L / mean end-to-end (Little's law), so the
    two vary together. Requests that run side by side share their luck: they are one cluster.
    """
    waits = np.array([[one.end_to_end_seconds] for one in ordered])
    mean = statistics.clustered_mean(waits, _waves(len(ordered), concurrency))
    if mean.standard_error is None or mean.low is None or mean.high is None or mean.low <= 0:
        return Estimate(value=rate)
    return Estimate(
        value=rate,
        standard_error=rate * mean.standard_error / mean.value,
        low=rate * mean.value / mean.high,
        high=rate * mean.value / mean.low,
    )


def _quantiles(values: Sequence[float]) -> Quantiles:
    found = np.array(values)
    return Quantiles(**{name: statistics.quantile(found, at) for name, at in QUANTILES.items()})


def _gap_quantiles(ordered: Sequence[Exchange], concurrency: int) -> Quantiles:
    """Pool the gaps of all requests. Gaps of one answer are much alike, so intervals count waves of requests."""
    waves = _waves(len(ordered), concurrency)
    kept = [number for number, one in enumerate(ordered) if one.itl_seconds is not None]
    gaps = np.array([ordered[number].itl_seconds for number in kept])
    names = [name for name, at in QUANTILES.items() if gaps.size >= statistics.least_sample(at)]
    if not names:
        return Quantiles(p50=None, p90=None, p95=None, p99=None)
    found = statistics.clustered_quantiles(gaps, waves[kept], tuple(QUANTILES[name] for name in names))
    return Quantiles(**{**dict.fromkeys(QUANTILES), **dict(zip(names, found, strict=True))})


def _waves(requests: int, concurrency: int) -> statistics.Clusters:
    """Number the requests, in the order they were sent, by the group that ran side by side."""
    return (np.arange(requests) // concurrency).astype(np.int32)
