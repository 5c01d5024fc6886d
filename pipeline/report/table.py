"""The tables of metrics, and what cells of them say: for the terminal, for Markdown and for the page alike."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from evals.statistics import Estimate
from pipeline import metrics
from pipeline.metrics import Metric
from pipeline.metrics.formats import number
from pipeline.records import Gate, Selection, Standing
from pipeline.report import blocks
from pipeline.report.blocks import Cell, Mark, Table

STAR = "`*`: on the Pareto front of size, perplexity and served tokens/s: no other artifact is as good in all three."

DOUBTED = "†"
"""Behind a figure that was measured on a busy machine."""


RANKING = (
    "bytes", "bits_per_weight", "perplexity_ratio", "kld_mean", "top1_agreement", "served_output_tokens_per_second",
    "served_ttft_seconds_p50", "decode_tokens_per_second", "peak_rss_bytes", "price_per_million_tokens",
)  # fmt: skip
"""The columns of the ranking; those that are optional only where some artifact has a value."""

QUALITY = (
    "perplexity", "bits_per_byte", "log_perplexity_ratio", "delta_p_mean", "delta_p_rms", "greedy_length",
    "greedy_identical", "chat_template_agreement",
)  # fmt: skip

KLD = ("kld_mean", "kld_median", "kld_p95", "kld_p99", "kld_p999", "kld_maximum")

SPEED = (
    "prefill_tokens_per_second", "decode_tokens_per_second", "ttft_seconds", "load_seconds", "peak_rss_bytes",
    "peak_gpu_bytes",
)  # fmt: skip

COST = ("price_per_million_tokens", "break_even_tokens_per_month")

SHOWN = tuple(dict.fromkeys((*RANKING, *QUALITY, *KLD, *SPEED)))
"""What a model card tells of an artifact."""


def ranking(selection: Selection) -> Table:
    """Return one row an artifact, in order of rank."""
    shown = _shown(selection, RANKING)
    rows = [
        (
            Cell(text=str(standing.rank or "-"), value=standing.rank),
            Cell(text=standing.name + (" *" if standing.pareto else "")),
            *(cell(metric, standing) for metric in shown),
            Cell(text=verdict(standing, selection.winner), mark=mark(standing, selection.winner)),
        )
        for standing in selection.ranking
    ]
    header = ("rank", "artifact", *(metric.title for metric in shown), "verdict")
    return blocks.table("The artifacts, ranked", header, rows)


def details(about: str, selection: Selection, columns: tuple[str, ...]) -> Table:
    """Return rows of other columns, in the same order, without unavailable artifacts."""
    shown = _shown(selection, columns)
    rows = [
        (Cell(text=standing.name), *(cell(metric, standing) for metric in shown))
        for standing in selection.ranking
        if not standing.unavailable
    ]
    return blocks.table(about, ("artifact", *(metric.title for metric in shown)), rows)


def cell(metric: Metric, standing: Standing) -> Cell:
    """Return a value with its interval, marked where a gate on it is not passed, or where it is not to be trusted."""
    found = standing.metrics.get(metric.name)
    shown = figure(found, metric.show, noticed([gate for gate in standing.missed if gate.metric == metric.name]))
    if found is None or metric.doubt(standing) is None:
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


def _shown(selection: Selection, columns: tuple[str, ...]) -> tuple[Metric, ...]:
    return tuple(
        metric
        for metric in map(metrics.named, columns)
        if not metric.optional or any(standing.metrics.get(metric.name) for standing in selection.ranking)
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
    settle = (
        "no amount of text would settle it"
        if gate.more is None
        else f"{gate.more:,} more {metrics.named(gate.metric).sample}"
    )
    return f"{found}, limit {limit}: not enough data ({settle})"
