"""What else ran while artifacts were timed: a warning for the top of a report, and a table for those who ask."""

from collections.abc import Iterator, Mapping, Sequence

from evals import interference
from evals.interference import Interference, Watched
from pipeline import metrics
from pipeline.metrics.formats import percent
from pipeline.records import Latency, Selection
from pipeline.report import blocks, table
from pipeline.report.blocks import Block, Cell, Prose

MOST_NAMED = 4
"""Artifacts that a sentence names one by one."""


def warning(selection: Selection) -> str | None:
    """Say whose speeds were measured on a busy machine, what ran, and what to do; None where all may be trusted."""
    disturbed = {one.name: one.disturbed for one in selection.ranking if one.disturbed}
    if not disturbed:
        return None
    told = [f"{name} ({_told(parts)})" for name, parts in disturbed.items()]
    shown = "; ".join(told[:MOST_NAMED]) + (f"; and {len(told) - MOST_NAMED} more" if told[MOST_NAMED:] else "")
    metric = metrics.named(selection.objective["metric"])
    chosen = any(metric.doubt(one) for one in selection.ranking)
    order = f" The order by `{metric.name}` may be another on a quiet machine." if chosen else ""
    return (
        f"**Not to be trusted ({table.DOUBTED}): speeds measured on a busy machine**, of {shown}. A busy machine slows "
        f"and never speeds up.{order} Let the machine come to rest, and measure again: `{again(list(disturbed))}`."
    )


def again(named: Sequence[str]) -> str:
    """Return the command that measures these artifacts' speeds again, and all that follows from them."""
    targets = [f"latency@{name}" for name in named] if len(named) <= MOST_NAMED else ["latency"]
    return f"dvc repro --force --single-item {' '.join(targets)} && dvc repro"


def _told(parts: Mapping[str, str]) -> str:
    """Say what ran beside which parts, once for parts that have the same to tell."""
    by_problem: dict[str, list[str]] = {}
    for part, problem in parts.items():
        by_problem.setdefault(problem, []).append(part)
    return "; ".join(f"{' and '.join(named)}: {problem}" for problem, named in by_problem.items())


def section(named: Sequence[str], latency: Mapping[str, Latency]) -> tuple[Block, ...]:
    """Show what ran beside measurements that were repeated or are not to be trusted, and the most beside the others."""
    all_ = [(name, part, watched) for name in named for part, watched in latency[name].watched.items()]
    seen = [(name, part, watched) for name, part, watched in all_ if watched.tries]
    if not seen:
        return (Prose(text="This machine does not tell what else ran."),)
    rows = [
        _row(name, part, watched, number, one)
        for name, part, watched in seen
        if len(watched.tries) > 1 or interference.problems(watched.interference)
        for number, one in enumerate(watched.tries)
    ]
    quiet = [one for _, _, watched in seen if (one := watched.interference) and not interference.problems(one)]
    text = f"{len(quiet)} of {len(seen)} measurements were left alone as far as it matters"
    if quiet:
        most = max(quiet, key=interference.severity)
        text += f"; beside the most disturbed of these, other processes ran {_cores(most)} of {most.cores} processors"
    if hidden := sorted({name for _, _, watched in seen for one in watched.tries for name in interference.unseen(one)}):
        text += f". This machine does not show: {', '.join(hidden)}"
    note = (
        f"{text}. A measurement is made again, {interference.TRIES} times in all, while other processes, the "
        f"hypervisor and processor limits take more than {interference.LOST_CORES:g} of the processors that it wants, "
        f"heat slows the processor {interference.HOT_SHARE:.0%} of the time, or more than a MiB/s is read back from "
        "swap; the try with least beside it is kept."
    )
    if not rows:
        return (Prose(text=note),)
    header = (
        "artifact", "measurement", "try", "seconds", "other processes, processors", "steal, %", "withheld by limits, %",
        "hot, %", "load average", "ran most", "figures",
    )  # fmt: skip
    return Prose(text=note), blocks.table("Measurements beside which too much else ran", header, rows)


def _row(name: str, part: str, watched: Watched, number: int, one: Interference) -> tuple[Cell, ...]:
    def share(value: float | None, of: float) -> Cell:
        return table.plain(None if value is None else value / of, percent(1))

    problems = interference.problems(one)
    processor_seconds = one.seconds * one.cores
    most = ", ".join(f"{other.name} {other.cpu_seconds:.1f} s" for other in one.others)
    kept = "kept" if number == watched.kept else "not kept"
    return (
        *blocks.words(name, part),
        table.plain(number + 1, lambda v: f"{v:.0f}"),
        table.plain(one.seconds, lambda v: f"{v:.2f}"),
        Cell(text=_cores(one), value=one.other_cpu_seconds and one.other_cpu_seconds / one.seconds),
        share(one.steal_seconds, processor_seconds),
        share(one.throttled_cpu_seconds, processor_seconds),
        share(one.hot_seconds, one.seconds),
        table.plain(one.load_average, lambda v: f"{v:.2f}"),
        Cell(text=most or "-"),
        Cell(text=f"{kept} {table.DOUBTED}" if problems else kept, mark="unsure" if problems else "good"),
    )


def _cores(one: Interference) -> str:
    return "-" if one.other_cpu_seconds is None else f"{one.other_cpu_seconds / one.seconds:.2f}"


def lines(selection: Selection) -> Iterator[str]:
    """Yield the warning as a terminal shows it, if there is one."""
    if (told := warning(selection)) is not None:
        yield told.replace("**", "").replace("`", "")
