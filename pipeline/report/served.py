"""Speed as clients get it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from evals.load import QUANTILES, Level
from evals.statistics import least_sample
from pipeline.metrics.formats import size
from pipeline.params import ServingParams
from pipeline.records import Served
from pipeline.report import blocks
from pipeline.report.blocks import Block, Cell, Items, Prose, Table
from pipeline.report.table import DOUBTED, figure, plain

Measured = Mapping[str, Served | None]

Doubted = Collection[tuple[str, int]]
"""Artifacts and numbers of streams that were measured on a busy machine."""

WAITS = {"TTFT": "ttft_seconds", "TPOT": "tpot_seconds", "ITL": "itl_seconds", "end-to-end": "end_to_end_seconds"}


def definitions(wanted: ServingParams) -> tuple[Block, ...]:
    """Say what was asked of each server and how each figure is reckoned from it."""
    sizes = ", ".join(f"{name} {least_sample(at)}" for name, at in QUANTILES.items())
    asked = (
        f"The artifact's engine behind the gateway on loopback. Each stream sends a request of {wanted.prompt_tokens} "
        f"prompt tokens for {wanted.output_tokens} tokens, greedy, end-of-sequence ignored, and the next one after its "
        f"answer, {wanted.requests} times after {wanted.warmup} warm-up; no two prompts begin alike. Token counts are "
        "the server's `usage`."
    )
    reckoned = (
        "output tokens/s = completion tokens / wall, requests/s = requests / wall; wall = last end - first request "
        "sent. Intervals by Little's law from the mean end-to-end time, requests that ran side by side being one "
        "cluster.",
        f"goodput = requests with TTFT at most {wanted.slo.ttft_seconds:g} s and TPOT at most "
        f"{wanted.slo.tpot_seconds:g} s / wall; the interval is Wilson's, of their share.",
        "TTFT = first chunk - request sent. TPOT = (last chunk - first chunk) / (completion tokens - 1). ITL = each "
        "gap between two chunks, in answers whose chunks hold one token each; chunks that arrive together have none "
        "between them. end-to-end = end of the answer - request sent.",
        f"A quantile is given where the sample has two values that enclose it at 95 %, which takes for {sizes}; "
        "ITL's intervals are a bootstrap over clusters of requests.",
        f"Intervals hold what differs within this run; `{DOUBTED}` is a run beside which too much else ran.",
    )
    return Prose(text=asked), Items(items=reckoned)


def rates(measured: Measured, doubted: Doubted) -> Table:
    """Return what each artifact served per second, a row for each number of streams."""
    header = ("artifact", "streams", "requests", "output tok/s", "requests/s", "goodput, requests/s")
    rows = [
        (
            *_level(name, level, doubted),
            plain(len(level.exchanges), lambda v: f"{v:,.0f}"),
            figure(level.output_tokens_per_second, lambda v: f"{v:,.0f}"),
            figure(level.requests_per_second, _three),
            figure(level.goodput_requests_per_second, _three),
        )
        for name, level in _levels(measured)
    ]
    return blocks.table("What was served per second", header, rows)


def waits(measured: Measured, doubted: Doubted) -> Table:
    """Return how long clients waited, a row for each number of streams, without quantiles that no sample supports."""
    levels = _levels(measured)
    columns: list[tuple[str, Callable[[Level], Cell]]] = []
    for title, kind in WAITS.items():
        for quantile in QUANTILES:
            if any(getattr(getattr(level, kind), quantile) for _, level in levels):
                columns.append((f"{title} {quantile}, ms", _wait(kind, quantile)))
    header = ("artifact", "streams", *(title for title, _ in columns))
    rows = [(*_level(name, level, doubted), *(cell(level) for _, cell in columns)) for name, level in levels]
    return blocks.table("How long clients waited", header, rows)


def costs(measured: Measured) -> Table:
    """Return what each server takes to start and to hold."""
    on_gpu = any(served and served.peak_gpu_bytes is not None for served in measured.values())
    header = ("artifact", "runtime", "slots", "context, tokens", "ready after, s", "peak memory, all processes")
    rows = [
        (
            *blocks.words(name, served.runtime),
            plain(served.slots, lambda v: f"{v:.0f}"),
            plain(served.context_tokens, lambda v: f"{v:,.0f}"),
            plain(served.load_seconds, lambda v: f"{v:.2f}"),
            plain(served.peak_rss_bytes, size),
            *((plain(served.peak_gpu_bytes, size),) if on_gpu else ()),
        )
        for name, served in measured.items()
        if served
    ]
    return blocks.table("What each server takes", (*header, *(("peak GPU memory",) if on_gpu else ())), rows)


def _level(name: str, level: Level, doubted: Doubted) -> tuple[Cell, Cell]:
    streams = plain(level.concurrency, lambda v: f"{v:.0f}")
    if (name, level.concurrency) in doubted:
        streams = replace(streams, text=f"{streams.text} {DOUBTED}", mark="unsure")
    return Cell(text=name), streams


def _levels(measured: Measured) -> list[tuple[str, Level]]:
    return [(name, level) for name, served in measured.items() if served for level in served.levels]


def _wait(kind: str, quantile: str) -> Callable[[Level], Cell]:
    return lambda level: figure(getattr(getattr(level, kind), quantile), lambda v: f"{1000 * v:,.2f}")


def _three(value: float) -> str:
    return f"{value:#.3g}" if value < 999.5 else f"{value:,.0f}"
