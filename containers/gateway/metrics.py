"""What operators watch, for Prometheus."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)


class Timed:
    """The clock of one answer."""

    def __init__(self, metrics: "Metrics") -> None:
        self._metrics = metrics
        self._began = self._last = time.perf_counter()
        self._first: float | None = None
        self._tokens = 0

    def token(self, count: int) -> None:
        """Note that tokens came."""
        self._last = time.perf_counter()
        self._tokens += count
        self._metrics.tokens_out.inc(count)
        if self._first is None:
            self._first = self._last
            self._metrics.ttft.observe(self._first - self._began)

    def end(self) -> None:
        """Note the end of a whole answer."""
        self._metrics.end_to_end.observe(time.perf_counter() - self._began)
        if self._first is not None and self._tokens > 1:
            self._metrics.tpot.observe((self._last - self._first) / (self._tokens - 1))


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "assay_requests", "HTTP requests by route and status", ["route", "status"], registry=registry
        )
        self.tokens_in = Counter("assay_prompt_tokens", "Prompt tokens", registry=registry)
        self.tokens_out = Counter("assay_generated_tokens", "Generated tokens", registry=registry)
        self.ttft = Histogram(
            "assay_ttft_seconds", "From an answer's request to its first token, waiting included", buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.tpot = Histogram(
            "assay_tpot_seconds", "Time per output token after the first", buckets=TOKEN_SECONDS, registry=registry
        )
        self.end_to_end = Histogram(
            "assay_end_to_end_seconds", "From an answer's request to its last token", buckets=SECONDS, registry=registry
        )

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when it is asked for."""
        Gauge(name, about, registry=self._registry).set_function(value)

    @contextmanager
    def answer(self, prompt_tokens: int) -> Iterator[Timed]:
        """Time one answer; one that fails or is cancelled counts its tokens, and no time."""
        self.tokens_in.inc(prompt_tokens)
        timed = Timed(self)
        yield timed
        timed.end()

    def text(self) -> bytes:
        """Return Prometheus's text form."""
        return generate_latest(self._registry)
