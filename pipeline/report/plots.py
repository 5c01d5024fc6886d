"""What plots show. The Vega-Lite templates in plots/ draw it, for the page and for `dvc plots` alike.

A template has DVC's anchors (<DVC_METRIC_X> and the like), which DVC fills as dvc.yaml says and the page as its reader
chooses. Fields are in the units that their names end with; FIELD_low and FIELD_high are the 95 % interval.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evals.load import Level
from evals.statistics import Estimate
from pipeline.records import Selection, Served
from pipeline.report import table
from pipeline.report.table import MIB

TEMPLATES = Path(__file__).parent / "plots"

MOST_POINTS = 100
"""Of one artifact's waits on the page: beyond that, evenly spaced order statistics stand for them, both ends included,
and keep the page small."""

Row = dict[str, Any]
Measured = Mapping[str, Served | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A metric to plot against another."""

    field: str
    metric: str
    title: str
    better: Literal["less", "more"]
    convert: Callable[[float], float] = float
    logarithmic: bool = False
    """Where all values are positive: of values that differ by orders of magnitude."""


AXES = (
    Axis(
        field="size_mib", metric="bytes", title="size, MiB", better="less", convert=lambda v: v / MIB, logarithmic=True
    ),
    Axis(field="bits_per_weight", metric="bits_per_weight", title="bits/weight", better="less"),
    Axis(
        field="perplexity_increase_percent",
        metric="perplexity_ratio",
        title="perplexity increase, %",
        better="less",
        convert=lambda v: 100 * (v - 1),
    ),
    Axis(field="kld_mean_nats", metric="kld_mean", title="KLD, nats", better="less", logarithmic=True),
    Axis(field="kld_p99_nats", metric="kld_p99", title="KLD p99, nats", better="less", logarithmic=True),
    Axis(
        field="top1_agreement_percent",
        metric="top1_agreement",
        title="top-1 agreement, %",
        better="more",
        convert=lambda v: 100 * v,
    ),
    Axis(
        field="served_output_tokens_per_second",
        metric="served_output_tokens_per_second",
        title="served tokens/s",
        better="more",
    ),
    Axis(
        field="served_ttft_p50_ms",
        metric="served_ttft_seconds_p50",
        title="served TTFT p50, ms",
        better="less",
        convert=lambda v: 1000 * v,
        logarithmic=True,
    ),
    Axis(
        field="decode_tokens_per_second",
        metric="decode_tokens_per_second",
        title="decode tokens/s, one stream",
        better="more",
    ),
    Axis(
        field="served_peak_memory_mib",
        metric="served_peak_rss_bytes",
        title="memory as served, MiB",
        better="less",
        convert=lambda v: v / MIB,
        logarithmic=True,
    ),
    Axis(
        field="served_peak_gpu_memory_mib",
        metric="served_peak_gpu_bytes",
        title="GPU memory as served, MiB",
        better="less",
        convert=lambda v: v / MIB,
        logarithmic=True,
    ),
    Axis(
        field="price_per_million_tokens",
        metric="price_per_million_tokens",
        title="price of 10^6 tokens",
        better="less",
    ),
)


def axes(selection: Selection) -> tuple[Axis, ...]:
    """Return the axes that some artifact has a value on, tasks' accuracies last."""
    tasks = {name for standing in selection.ranking for name in standing.metrics if name.startswith("accuracy.")}
    accuracies = (
        Axis(
            field=f"accuracy_{name.partition('.')[2]}_percent",
            metric=name,
            title=f"accuracy of {name.partition('.')[2]}, %",
            better="more",
            convert=lambda v: 100 * v,
        )
        for name in sorted(tasks)
    )
    return tuple(
        axis
        for axis in (*AXES, *accuracies)
        if any(standing.metrics.get(axis.metric) for standing in selection.ranking)
    )


def artifacts(selection: Selection, backends: Mapping[str, str]) -> list[Row]:
    """Return one row an available artifact, with every axis."""
    shown = axes(selection)
    return [
        {
            "artifact": standing.name,
            "backend": backends[standing.name],
            "verdict": table.verdict(standing, selection.winner),
            "passes": not standing.missed,
            **{k: v for axis in shown for k, v in _figure(axis, standing.metrics.get(axis.metric)).items()},
        }
        for standing in selection.ranking
        if not standing.unavailable
    ]


def levels(measured: Measured) -> list[Row]:
    """Return one row an artifact and number of streams: what was served per second."""
    rates = ("output_tokens_per_second", "requests_per_second", "goodput_requests_per_second")
    return [
        {
            "artifact": name,
            "streams": level.concurrency,
            **{k: v for rate in rates for k, v in _interval(rate, getattr(level, rate), float).items()},
        }
        for name, level in _levels(measured)
    ]


def requests(measured: Measured) -> list[Row]:
    """Return one row a request: how long its client waited."""
    return [
        {
            "run": f"{name}, {streams(level.concurrency)}",
            "artifact": name,
            "streams": level.concurrency,
            "ttft_ms": 1000 * one.ttft_seconds,
            "tpot_ms": 1000 * one.tpot_seconds,
            "end_to_end_ms": 1000 * one.end_to_end_seconds,
        }
        for name, level in _levels(measured)
        for one in level.exchanges
    ]


def streams(count: int) -> str:
    """Name a number of streams."""
    return "1 stream" if count == 1 else f"{count} streams"


def waits(measured: Measured) -> list[Row]:
    """Return one row an artifact and number of streams: raw waits in milliseconds, sorted, at most MOST_POINTS each."""
    return [
        {
            "artifact": name,
            "streams": level.concurrency,
            "ttft_ms": _sample([one.ttft_seconds for one in level.exchanges]),
            "tpot_ms": _sample([one.tpot_seconds for one in level.exchanges]),
            "itl_ms": _sample([gap for one in level.exchanges for gap in one.itl_seconds or ()]),
            "end_to_end_ms": _sample([one.end_to_end_seconds for one in level.exchanges]),
        }
        for name, level in _levels(measured)
    ]


def write(folder: Path, selection: Selection, backends: Mapping[str, str], measured: Measured) -> None:
    """Write what `dvc plots` draws: artifacts.json, levels.json and requests.json, a row a line."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {"artifacts": artifacts(selection, backends), "levels": levels(measured), "requests": requests(measured)}
    for name, rows in found.items():
        lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
        partial = folder / f".{name}.partial"
        partial.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        partial.replace(folder / f"{name}.json")


def templates() -> dict[str, Any]:
    """Return the templates by name, their anchors unfilled."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(TEMPLATES.glob("*.json"))}


def _figure(axis: Axis, found: Estimate | None) -> Row:
    return _interval(axis.field, found, axis.convert)


def _interval(field: str, found: Estimate | None, convert: Callable[[float], float]) -> Row:
    """Return a figure's fields; none where there is no figure, as null has no place on an axis."""
    if found is None:
        return {}
    row = {field: convert(found.value)}
    if found.low is not None and found.high is not None:
        row |= {f"{field}_low": convert(found.low), f"{field}_high": convert(found.high)}
    return row


def _levels(measured: Measured) -> list[tuple[str, Level]]:
    return [(name, level) for name, served in measured.items() if served for level in served.levels]


def _sample(seconds: Sequence[float]) -> list[float]:
    ordered = 1000 * np.sort(np.array(seconds))
    kept = ordered[np.linspace(0, len(ordered) - 1, min(len(ordered), MOST_POINTS)).round().astype(int)]
    return [float(f"{value:.4g}") for value in kept]
