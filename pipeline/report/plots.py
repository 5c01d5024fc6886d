"""What plots show. The Vega-Lite templates in plots/ draw it, for the page and for `dvc plots` alike.

A template has DVC's anchors (<DVC_METRIC_X> and the like), which DVC fills as dvc.yaml says and the page as its reader
chooses. Fields are in the units that their names end with; FIELD_low and FIELD_high are the 95 % interval.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.load import Level
from evals.statistics import Estimate
from pipeline import metrics, outputs
from pipeline.metrics import Axis
from pipeline.records import Selection, Served
from pipeline.report import table

TEMPLATES = Path(__file__).parent / "plots"

MOST_POINTS = 100
"""Points of one artifact's waits on the page: beyond that, evenly spaced order statistics stand for them, both ends
included, and keep the page small."""

Row = dict[str, Any]
Measured = Mapping[str, Served | None]


AXES = (
    "bytes", "bits_per_weight", "perplexity_ratio", "kld_mean", "kld_p99", "top1_agreement",
    "served_output_tokens_per_second", "served_ttft_seconds_p50", "decode_tokens_per_second", "served_peak_rss_bytes",
    "served_peak_gpu_bytes", "price_per_million_tokens",
)  # fmt: skip
"""Metrics to plot against each other; accuracies of tasks come behind them."""


def axes(selection: Selection) -> dict[str, Axis]:
    """Return the axes that some artifact has a value on, by metric."""
    measured = {name for standing in selection.ranking for name, found in standing.metrics.items() if found}
    accuracies = sorted(name for name in measured if name.startswith("accuracy."))
    found = {name: metrics.named(name).axis for name in (*AXES, *accuracies) if name in measured}
    return {name: axis for name, axis in found.items() if axis is not None}


def artifacts(selection: Selection, backends: Mapping[str, str]) -> list[Row]:
    """Return one row an available artifact, with every axis."""
    shown = axes(selection)
    return [
        {
            "artifact": standing.name,
            "backend": backends[standing.name],
            "verdict": table.verdict(standing, selection.winner),
            "passes": not standing.missed,
            **{
                field: value
                for name, axis in shown.items()
                for field, value in _interval(axis.field, standing.metrics.get(name), axis.convert).items()
            },
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
    """Write what `dvc plots` draws: artifacts.json, levels.json and requests.json, a row a line, and templates/."""
    shutil.rmtree(folder / "templates", ignore_errors=True)
    shutil.copytree(TEMPLATES, folder / "templates")
    found = {"artifacts": artifacts(selection, backends), "levels": levels(measured), "requests": requests(measured)}
    for name, rows in found.items():
        lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
        outputs.replace(folder / f"{name}.json", f"[\n{lines}\n]\n")


def templates() -> dict[str, Any]:
    """Return the templates by name, their anchors unfilled."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(TEMPLATES.glob("*.json"))}


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
