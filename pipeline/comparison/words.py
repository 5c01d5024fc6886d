"""A comparison as people read it: for a pull request and for a browser alike."""

from collections.abc import Callable

from evals.statistics import Estimate
from pipeline.comparison.compare import Change, Comparison
from pipeline.comparison.judge import Verdict
from pipeline.metrics import Metric
from pipeline.records import Standing
from pipeline.report import blocks, table
from pipeline.report.blocks import Block, Cell, Items, Mark, Prose, Section, words

MARKS: dict[Verdict, Mark | None] = {"better": "good", "worse": "bad", "unclear": "unsure", "same": None}

UNITS = ("%", "ms", "s")
"""Units that a column's title ends with, and that a table of many metrics tells in its cells."""


def title(comparison: Comparison) -> str:
    """Name both sides."""
    return f"{comparison.before} → {comparison.after}"


def sentence(comparison: Comparison) -> str:
    """Tell the winner and count the verdicts."""
    counts = [f"{count} {verdict}" for verdict in MARKS if (count := comparison.count(verdict))]
    old, new = (winner or "none" for winner in (comparison.old_winner, comparison.new_winner))
    winner = f"**The winner is still {new}.**" if old == new else f"**The winner changes from {old} to {new}.**"
    return f"{winner} Of what both sides measured: {', '.join(counts) or 'nothing'}."


def sections(comparison: Comparison) -> tuple[Section, ...]:
    """Return everything that a reader is told; what is the same comes last."""
    changed = [one for one in comparison.changes if one.verdict != "same"]
    same = [one for one in comparison.changes if one.verdict == "same"]
    found = []
    if comparison.warnings:
        found.append(Section(title="Measured on a busy machine", blocks=(Items(items=comparison.warnings),)))
    if comparison.notes:
        found.append(Section(title="Not compared pairwise", blocks=(Items(items=comparison.notes),)))
    if comparison.added or comparison.removed or comparison.statuses:
        found.append(Section(title="Artifacts", blocks=_artifacts(comparison)))
    if changed:
        found.append(Section(title="What changed", blocks=(_changes("Metrics that changed", changed),)))
    if same:
        found.append(Section(title="What stayed", blocks=_same(comparison, same)))
    found.append(Section(title="How a change is judged", blocks=_definitions(comparison)))
    return tuple(found)


def _artifacts(comparison: Comparison) -> tuple[Block, ...]:
    rows = [
        (*words(one.artifact, one.old, one.new), Cell(text=one.verdict, mark=MARKS[one.verdict]))
        for one in comparison.statuses
    ]
    rows += [
        (*words(one.name, "-", _standing(one, comparison.new_winner)), Cell(text="added")) for one in comparison.added
    ]
    rows += [
        (*words(one.name, _standing(one, comparison.old_winner), "-"), Cell(text="removed"))
        for one in comparison.removed
    ]
    return (blocks.table("Artifacts that changed", ("artifact", "old", "new", "verdict"), rows),)


def _standing(standing: Standing, winner: str | None) -> str:
    return table.verdict(standing, winner)


def _changes(about: str, changes: list[Change]) -> Block:
    order = tuple(MARKS)
    ordered = sorted(changes, key=lambda one: (one.verdict != "worse", order.index(one.verdict)))
    header = ("artifact", "metric", "old", "new", "difference", "paired", "verdict")
    return blocks.table(about, header, [_row(one) for one in ordered])


def _row(one: Change) -> tuple[Cell, ...]:
    render = _renderer(one.metric)
    return (
        Cell(text=one.artifact),
        Cell(text=f"`{one.metric.name}`"),
        Cell(text=render(one.old.value), value=one.old.value),
        Cell(text=render(one.new.value), value=one.new.value),
        Cell(text=_difference(one), value=one.difference.value),
        Cell(text="yes" if one.paired else "no"),
        Cell(text=f"{one.verdict}: {one.because}" if one.because else one.verdict, mark=MARKS[one.verdict]),
    )


def _renderer(metric: Metric) -> Callable[[float], str]:
    unit = metric.title.rpartition(", ")[2]
    return (lambda value: f"{metric.show(value)} {unit}") if unit in UNITS else metric.show


def _difference(one: Change) -> str:
    """Tell a difference in the scale of its margin."""
    scale, found = one.metric.scale, one.difference
    if scale == "%" and not one.old.value:
        return table.estimate(found, _signed)
    unit = {"%": " %", "points": " points"}.get(scale, "")
    factor = {"%": 100 / abs(one.old.value or 1), "points": 100.0}.get(scale, 1.0)
    scaled = Estimate(
        value=factor * found.value,
        low=None if found.low is None else factor * found.low,
        high=None if found.high is None else factor * found.high,
    )
    return table.estimate(scaled, _signed) + unit


def _signed(value: float) -> str:
    return "0" if value == 0 else f"{value:+.3g}" if abs(value) < 1000 else f"{value:+,.0f}"


def _same(comparison: Comparison, same: list[Change]) -> tuple[Block, ...]:
    """Name the artifacts of which nothing changed, and list the rest of the metrics."""
    counts = {one.artifact: comparison.count("same", one.artifact) for one in same}
    told = ", ".join(f"{name} ({count})" for name, count in counts.items())
    return (Prose(text=f"The same within the margin, by artifact and number of metrics: {told}."),)


def _definitions(comparison: Comparison) -> tuple[Block, ...]:
    alike: dict[str, set[str]] = {}
    for metric in (one.metric for one in comparison.changes):
        of = " of the old value" if metric.scale == "%" and metric.margin else ""
        alike.setdefault(f"{metric.better} is better, margin {metric.margin_text}{of}", set()).add(metric.name)
    margins = [f"{', '.join(f'`{name}`' for name in sorted(names))}: {rule}" for rule, names in alike.items()]
    return (
        Prose(
            text="**worse**: the whole 95 % interval of the difference lies beyond the metric's margin, on the bad "
            "side; **better**: on the good side; **same**: the whole interval lies within the margin; **unclear**: "
            "anything else. Paired intervals are those of the differences token by token or document by document, "
            "clustered by document; the others are put together from both sides' own. Times are compared on one "
            "machine under one load only, and not where something else ran beside either side's."
        ),
        Items(items=tuple(margins)),
    )
