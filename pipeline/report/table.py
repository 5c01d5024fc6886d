"""The ranking as rows of text, for the terminal and for Markdown alike."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.records import Failure, Selection, Standing

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One metric as people read it."""

    metric: str
    title: str
    render: Callable[[float], str]


COLUMNS = (
    Column(metric="bytes", title="size", render=lambda v: size(v)),
    Column(metric="bits_per_weight", title="bits/weight", render=lambda v: f"{v:.2f}"),
    Column(metric="perplexity", title="perplexity", render=lambda v: f"{v:.3f}"),
    Column(metric="perplexity_ratio", title="vs reference", render=lambda v: f"{100 * (v - 1):+.2f} %"),
    Column(metric="prefill_tokens_per_second", title="prefill tok/s", render=lambda v: f"{v:,.0f}"),
    Column(metric="decode_tokens_per_second", title="decode tok/s", render=lambda v: f"{v:,.0f}"),
    Column(metric="ttft_seconds", title="TTFT", render=lambda v: f"{1000 * v:.1f} ms"),
    Column(metric="load_seconds", title="load", render=lambda v: f"{v:.2f} s"),
    Column(metric="peak_rss_bytes", title="peak memory", render=lambda v: size(v)),
)

HEADER = ("rank", "artifact", *(column.title for column in COLUMNS), "verdict")


def rows(selection: Selection) -> list[tuple[str, ...]]:
    """Return one row an artifact, in order of rank, cells as in HEADER."""
    return [
        (
            str(standing.rank or "-"),
            standing.name + (" *" if standing.pareto else ""),
            *(cell(column, standing.metrics.get(column.metric)) for column in COLUMNS),
            verdict(standing, selection.winner),
        )
        for standing in selection.ranking
    ]


def cell(column: Column, value: float | None) -> str:
    """Render a value, or a dash where there is none."""
    return "-" if value is None else column.render(value)


def verdict(standing: Standing, winner: str | None) -> str:
    """Say in a few words why an artifact stands where it stands."""
    if standing.unavailable:
        return f"unavailable: {standing.unavailable}"
    if standing.failures:
        return "; ".join(failure(one) for one in standing.failures)
    return "winner" if standing.name == winner else "passes"


def failure(one: Failure) -> str:
    """State a failed constraint with both numbers."""
    relation = ">" if one.relation == "at_most" else "<"
    return f"{one.metric} {number(one.found)} {relation} {number(one.limit)}"


def number(value: float | None) -> str:
    """Render a number of any magnitude with the digits that matter."""
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"


def size(bytes_: float) -> str:
    """Render bytes in MiB or GiB."""
    return f"{bytes_ / 2**30:.2f} GiB" if bytes_ >= 2**30 else f"{bytes_ / MIB:.1f} MiB"
