"""The figures as rows of text, for the terminal and for Markdown alike."""

from collections.abc import Callable
from dataclasses import dataclass

from evals.statistics import Estimate
from pipeline.records import Gate, Selection, Standing

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One metric as people read it; the unit stands in the title."""

    metric: str
    title: str
    render: Callable[[float], str]


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
)


def ranking(selection: Selection) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and one row an artifact, in order of rank."""
    header = ("rank", "artifact", *(column.title for column in RANKING), "verdict")
    rows = [
        (
            str(standing.rank or "-"),
            standing.name + (" *" if standing.pareto else ""),
            *(cell(column, standing) for column in RANKING),
            verdict(standing, selection.winner),
        )
        for standing in selection.ranking
    ]
    return header, rows


def details(selection: Selection, columns: tuple[Column, ...]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of other columns, in the same order, without unavailable artifacts."""
    header = ("artifact", *(column.title for column in columns))
    rows = [
        (standing.name, *(cell(column, standing) for column in columns))
        for standing in selection.ranking
        if not standing.unavailable
    ]
    return header, rows


def cell(column: Column, standing: Standing) -> str:
    """Render a value with its interval, or a dash where there is none."""
    return estimate(standing.metrics.get(column.metric), column.render)


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
        return f"unavailable: {standing.unavailable}"
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
    settle = "no amount of text would settle it" if gate.more is None else f"{gate.more:,} more {unit(gate.metric)}"
    return f"{found}, limit {limit}: not enough data ({settle})"


def unit(metric: str) -> str:
    """Name what the sample of a metric is counted in."""
    if metric.startswith("greedy"):
        return "prompts"
    if metric.startswith("served"):
        return "requests"
    return "documents" if "." in metric else "windows"


def number(value: float) -> str:
    """Render a number of any magnitude with the digits that matter."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"


def size(bytes_: float) -> str:
    """Render bytes in MiB or GiB."""
    return f"{bytes_ / 2**30:.2f} GiB" if bytes_ >= 2**30 else f"{bytes_ / MIB:.1f} MiB"
