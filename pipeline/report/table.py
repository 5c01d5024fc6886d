"""Each metric as people read it, and the tables of them: for the terminal, for Markdown and for the page alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from evals.statistics import Estimate
from pipeline.records import Gate, Selection, Standing
from pipeline.report import blocks
from pipeline.report.blocks import Cell, Mark, Table

MIB = 2**20

STAR = "`*`: on the Pareto front of size, perplexity and served tokens/s: no other artifact is as good in all three."

DOUBTED = "†"
"""Behind a figure that was measured on a busy machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One metric as people read it; the unit stands in the title."""

    metric: str
    title: str
    render: Callable[[float], str]
    optional: bool = False
    """Left out where no artifact has a value, as a price where none is known."""


def percent(digits: int) -> Callable[[float], str]:
    """Render a share in percent."""
    return lambda value: f"{100 * value:.{digits}f}"


def excess(value: float) -> str:
    """Render a ratio as percent above one."""
    return f"{100 * (value - 1):+.2f}"


def nats(value: float) -> str:
    """Render a divergence, of whatever magnitude."""
    return f"{value:.5f}" if value < 0.01 else f"{value:.4f}"


RANKING = (
    Column(metric="bytes", title="size", render=lambda v: size(v)),
    Column(metric="bits_per_weight", title="bits/weight", render=lambda v: f"{v:.2f}"),
    Column(metric="perplexity_ratio", title="perplexity vs reference, %", render=excess),
    Column(metric="kld_mean", title="KLD, nats", render=nats),
    Column(metric="top1_agreement", title="top-1 agreement, %", render=percent(1)),
    Column(metric="served_output_tokens_per_second", title="served tok/s", render=lambda v: f"{v:,.0f}"),
    Column(metric="served_ttft_seconds_p50", title="served TTFT, ms", render=lambda v: f"{1000 * v:.1f}"),
    Column(metric="decode_tokens_per_second", title="decode tok/s", render=lambda v: f"{v:,.0f}"),
    Column(metric="peak_rss_bytes", title="peak memory", render=lambda v: size(v)),
    Column(metric="price_per_million_tokens", title="price of 10^6 tokens", render=lambda v: f"{v:.3g}", optional=True),
)

QUALITY = (
    Column(metric="perplexity", title="perplexity", render=lambda v: f"{v:.3f}"),
    Column(metric="bits_per_byte", title="bits/byte", render=lambda v: f"{v:.4f}"),
    Column(metric="log_perplexity_ratio", title="ln ratio", render=lambda v: f"{v:+.5f}"),
    Column(metric="delta_p_mean", title="mean Δp, %", render=lambda v: f"{100 * v:+.3f}"),
    Column(metric="delta_p_rms", title="RMS Δp, %", render=percent(3)),
    Column(metric="greedy_length", title="greedy tokens in common", render=lambda v: f"{v:.1f}"),
    Column(metric="greedy_identical", title="greedy identical, %", render=percent(0)),
    Column(metric="chat_template_agreement", title="chat template, %", render=percent(0)),
)

KLD = (
    Column(metric="kld_mean", title="mean", render=nats),
    Column(metric="kld_median", title="median", render=nats),
    Column(metric="kld_p95", title="p95", render=nats),
    Column(metric="kld_p99", title="p99", render=nats),
    Column(metric="kld_p999", title="p99.9", render=nats),
    Column(metric="kld_maximum", title="max", render=nats),
)

SPEED = (
    Column(metric="prefill_tokens_per_second", title="prefill tok/s", render=lambda v: f"{v:,.0f}"),
    Column(metric="decode_tokens_per_second", title="decode tok/s", render=lambda v: f"{v:,.0f}"),
    Column(metric="ttft_seconds", title="TTFT, ms", render=lambda v: f"{1000 * v:.1f}"),
    Column(metric="load_seconds", title="load, s", render=lambda v: f"{v:.2f}"),
    Column(metric="peak_rss_bytes", title="peak memory", render=lambda v: size(v)),
    Column(metric="peak_gpu_bytes", title="peak GPU memory", render=lambda v: size(v), optional=True),
)

COST = (
    Column(metric="price_per_million_tokens", title="price of 10^6 tokens, USD", render=lambda v: f"{v:.3g}"),
    Column(
        metric="break_even_tokens_per_month",
        title="break-even, tokens a month",
        render=lambda v: f"{v:,.0f}",
        optional=True,
    ),
)

COLUMNS = {column.metric: column for columns in (RANKING, QUALITY, KLD, SPEED) for column in columns}
"""By metric; of one that several tables have, the last."""


def ranking(selection: Selection) -> Table:
    """Return one row an artifact, in order of rank."""
    columns = _shown(selection, RANKING)
    rows = [
        (
            Cell(text=str(standing.rank or "-"), value=standing.rank),
            Cell(text=standing.name + (" *" if standing.pareto else "")),
            *(cell(column, standing) for column in columns),
            Cell(text=verdict(standing, selection.winner), mark=mark(standing, selection.winner)),
        )
        for standing in selection.ranking
    ]
    header = ("rank", "artifact", *(column.title for column in columns), "verdict")
    return blocks.table("The artifacts, ranked", header, rows)


def details(about: str, selection: Selection, columns: tuple[Column, ...]) -> Table:
    """Return rows of other columns, in the same order, without unavailable artifacts."""
    columns = _shown(selection, columns)
    rows = [
        (Cell(text=standing.name), *(cell(column, standing) for column in columns))
        for standing in selection.ranking
        if not standing.unavailable
    ]
    return blocks.table(about, ("artifact", *(column.title for column in columns)), rows)


def cell(column: Column, standing: Standing) -> Cell:
    """Return a value with its interval, marked where a gate on it is not passed, or where it is not to be trusted."""
    found = standing.metrics.get(column.metric)
    shown = figure(found, column.render, noticed([gate for gate in standing.missed if gate.metric == column.metric]))
    if found is None or standing.doubt(column.metric) is None:
        return shown
    return replace(shown, text=f"{shown.text} {DOUBTED}", mark=shown.mark or "unsure")


def figure(found: Estimate | None, render: Callable[[float], str], mark: Mark | None = None) -> Cell:
    """Return a value with its interval as a cell, a dash where there is none."""
    return Cell(text=estimate(found, render), value=found.value if found else None, mark=mark)


def plain(value: float | None, render: Callable[[float], str]) -> Cell:
    """Return a figure that has no interval as a cell."""
    return figure(None if value is None else Estimate(value=value), render)


def mark(standing: Standing, winner: str | None) -> Mark | None:
    """Tell how an artifact's verdict is to be noticed."""
    if standing.unavailable:
        return "bad" if standing.failure else None
    return noticed(standing.missed) or ("winner" if standing.name == winner else "good")


def noticed(gates: Sequence[Gate]) -> Mark | None:
    """Tell how gates that may not be passed are to be noticed: by the worst of them."""
    verdicts = {gate.verdict for gate in gates} - {"passes"}
    if not verdicts:
        return None
    return "unsure" if verdicts <= {"not enough data", "busy machine"} else "bad"


def _shown(selection: Selection, columns: tuple[Column, ...]) -> tuple[Column, ...]:
    return tuple(
        column
        for column in columns
        if not column.optional or any(standing.metrics.get(column.metric) for standing in selection.ranking)
    )


def estimate(found: Estimate | None, render: Callable[[float], str]) -> str:
    """Render a value, and its interval in brackets where it has one."""
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return render(found.value)
    return f"{render(found.value)} [{render(found.low)}, {render(found.high)}]"


def verdict(standing: Standing, winner: str | None) -> str:
    """Say in a few words why an artifact stands where it stands."""
    if standing.unavailable:
        reason = standing.unavailable
        if standing.failure:
            return reason
        return f"unavailable {reason}" if reason.startswith("here: ") else f"unavailable: {reason}"
    if standing.missed:
        return "; ".join(missed(gate) for gate in standing.missed)
    return "winner" if standing.name == winner else "passes"


def missed(gate: Gate) -> str:
    """State a gate that is not passed, with both numbers."""
    limit = f"{gate.relation.replace('_', ' ')} {number(gate.limit)}"
    if gate.found is None:
        return f"{gate.metric} was not measured, limit {limit}"
    found = f"{gate.metric} {estimate(gate.found, number)}"
    if gate.verdict == "fails":
        return f"{found}, limit {limit}"
    if gate.verdict == "busy machine":
        return f"{found}, limit {limit}: cannot tell, it was measured on a busy machine"
    settle = "no amount of text would settle it" if gate.more is None else f"{gate.more:,} more {unit(gate.metric)}"
    return f"{found}, limit {limit}: not enough data ({settle})"


def unit(metric: str) -> str:
    """Name what the sample of a metric is counted in."""
    if metric.startswith("greedy"):
        return "prompts"
    if metric.startswith(("served", "price", "break_even")):
        return "requests"
    return "documents" if "." in metric else "windows"


def number(value: float) -> str:
    """Render a number of any magnitude with the digits that matter."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"


def size(bytes_: float) -> str:
    """Render bytes in MiB or GiB."""
    return f"{bytes_ / 2**30:.2f} GiB" if bytes_ >= 2**30 else f"{bytes_ / MIB:.1f} MiB"
