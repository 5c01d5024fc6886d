"""Two runs, artifact by artifact and metric by metric."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from evals import changes
from evals.statistics import Estimate
from evals.tokens import Tokens
from pipeline import metrics
from pipeline.comparison import judge
from pipeline.comparison.judge import Verdict
from pipeline.comparison.sides import Side
from pipeline.metrics import Metric
from pipeline.records import Latency, Spread, Standing, Tasks
from pipeline.records.measurements import IN_PROCESS
from pipeline.report import disturbance, table

ACCURACY = "accuracy."
"""How the names of tasks' main metrics begin; what nobody chose by is compared, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One metric of one artifact, on both sides."""

    artifact: str
    metric: Metric
    old: Estimate
    new: Estimate
    difference: Estimate
    """new - old."""
    paired: bool
    """Its interval is that of differences token by token, or document by document."""
    verdict: Verdict
    because: str | None = None
    """Why a verdict is unclear, beside the interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How an artifact stood, and stands: winner, passes, what it misses, or why it is unavailable."""

    artifact: str
    old: str
    new: str
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that is told of two runs."""

    before: str
    after: str
    old_winner: str | None
    new_winner: str | None
    added: tuple[Standing, ...]
    removed: tuple[Standing, ...]
    statuses: tuple[Status, ...]
    """The artifacts that pass, fail or exist now and did not, or the reverse."""
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    """A sentence for each side whose speeds are in part a busy machine's."""

    def count(self, verdict: Verdict, artifact: str | None = None) -> int:
        """Return how many metrics and statuses were judged so, of all artifacts or of one."""
        judged: Iterable[Change | Status] = (*self.changes, *self.statuses)
        return sum(one.verdict == verdict and artifact in (None, one.artifact) for one in judged)


def compare(before: Side, after: Side, *, everything: bool = False) -> Comparison:
    """Compare the artifacts that are on both sides, by the report's main metrics or by all of them."""
    old = {standing.name: standing for standing in before.selection.ranking}
    new = {standing.name: standing for standing in after.selection.ranking}
    wanted = None if everything else _wanted(before, after)
    found: list[Change] = []
    for name in (standing.name for standing in after.selection.ranking if standing.name in old):
        if not old[name].unavailable and not new[name].unavailable:
            found += _changes(old[name], new[name], before, after, wanted)
    return Comparison(
        before=before.title,
        after=after.title,
        old_winner=before.selection.winner,
        new_winner=after.selection.winner,
        added=tuple(one for name, one in new.items() if name not in old),
        removed=tuple(one for name, one in old.items() if name not in new),
        statuses=tuple(_statuses(old, new, before, after)),
        changes=tuple(found),
        notes=tuple(_missing(side) for side in (before, after) if side.missing),
        warnings=tuple(
            f"{side.title}: {warning}"
            for side in (before, after)
            if (warning := disturbance.warning(side.selection)) is not None
        ),
    )


def _wanted(*sides: Side) -> set[str]:
    """The metrics of the ranking's columns, and those that either side chooses by; `accuracy.*` goes without saying."""
    chosen = {metric for side in sides for metric in (side.selection.objective["metric"], *side.selection.constraints)}
    return chosen | set(table.RANKING)


def _changes(old: Standing, new: Standing, before: Side, after: Side, wanted: set[str] | None) -> list[Change]:
    """Compare one artifact's metrics, those that both sides measured."""
    both = [metric for name in new.metrics if name in old.metrics and (metric := metrics.find(name)) is not None]
    differ = [metric for metric in both if new.metrics[metric.name] != old.metrics[metric.name]]
    tokens: tuple[Tokens | None, Tokens | None] = (None, None)
    tasks: tuple[Tasks | None, Tasks | None] = (None, None)
    latency: tuple[Latency | None, Latency | None] = (None, None)
    apart = None
    # What is equal was restored; only what differs needs the records behind it.
    if any(metric.name in changes.PAIRED for metric in differ):
        tokens = before.tokens(old.name), after.tokens(new.name)
    if any(metric.name.startswith(ACCURACY) for metric in differ):
        tasks = before.tasks(old.name), after.tasks(new.name)
    if any(metric.timed for metric in differ):
        latency = before.latency(old.name), after.latency(new.name)
        apart = _taken_apart(old, new, *latency)
    found = []
    for metric in both:
        earlier, value = old.metrics[metric.name], new.metrics[metric.name]
        shown = wanted is None or metric.name in wanted or metric.name.startswith(ACCURACY)
        if earlier is None or value is None or not shown:
            continue
        paired = _paired(metric.name, earlier, tokens, tasks)
        change = paired or _unpaired(_spread(metric, earlier, latency[0]), _spread(metric, value, latency[1]))
        verdict, because = judge.judge(metric, earlier, change), None
        if metric.timed and value != earlier:
            because = apart or _doubt(metric, old, new, before, after)
            verdict = "unclear" if because else verdict
        found.append(
            Change(
                artifact=new.name,
                metric=metric,
                old=earlier,
                new=value,
                difference=change,
                paired=paired is not None,
                verdict=verdict,
                because=because,
            )
        )
    return found


def _paired(
    metric: str,
    old: Estimate,
    tokens: tuple[Tokens | None, Tokens | None],
    tasks: tuple[Tasks | None, Tasks | None],
) -> Estimate | None:
    """Return the change by differences of pairs; None where there are none."""
    if tokens[0] is not None and tokens[1] is not None:
        change = changes.of_tokens(metric, old, tokens[0], tokens[1])
        if change is not None:
            return change
    kind, _, task = metric.partition(".")
    answered = [one.tasks[task].answers.outcomes for one in tasks if one is not None and task in one.tasks]
    if kind != "accuracy" or len(answered) < 2:
        return None
    return changes.of_answers(*answered)


def _unpaired(old: Estimate, new: Estimate) -> Estimate:
    """Return the change by both sides' own intervals; the very same figure was restored, not measured twice."""
    return Estimate(value=0.0, low=0.0, high=0.0) if old == new else changes.difference(new, old)


def _spread(metric: Metric, value: Estimate, latency: Latency | None) -> Estimate:
    """Give a timing in process, the median of a few repeats, their extremes for an interval."""
    spread: Spread | None = getattr(latency, metric.name) if latency and metric.part == IN_PROCESS else None
    return value if spread is None else Estimate(value=value.value, low=spread.minimum, high=spread.maximum)


def _taken_apart(old: Standing, new: Standing, before: Latency | None, after: Latency | None) -> str | None:
    """Say why times of the two sides are not of one thing; None where they are."""
    if before is None or after is None:
        return "the records of the times are not there"
    if before.machine != after.machine:
        return "another machine"

    def load(latency: Latency, standing: Standing) -> tuple[object, ...]:
        served, rate = latency.served, standing.metrics.get("served_output_tokens_per_second")
        streams = [one.concurrency for one in served.levels if one.output_tokens_per_second == rate] if served else []
        shape = (served.prompt_tokens, served.output_tokens, streams) if served else ()
        return latency.threads, latency.prompt_tokens, latency.output_tokens, shape

    return None if load(before, old) == load(after, new) else "another load"


def _doubt(metric: Metric, old: Standing, new: Standing, before: Side, after: Side) -> str | None:
    """Say which side's figure is a busy machine's; None where neither is."""
    sides = ((before, metric.doubt(old)), (after, metric.doubt(new)))
    told = [f"{side.title} was measured on a busy machine ({why})" for side, why in sides if why is not None]
    return f"cannot tell, {' and '.join(told)}" if told else None


def _statuses(old: Mapping[str, Standing], new: Mapping[str, Standing], before: Side, after: Side) -> list[Status]:
    """Tell which artifacts pass, fail or exist now that did not, or the reverse."""
    found = []
    for name in (name for name in new if name in old):
        kinds = [_kind(standing) for standing in (old[name], new[name])]
        if kinds[0] == kinds[1]:
            continue
        verdict: Verdict = "worse" if kinds[1] < kinds[0] else "better"
        if 0 not in kinds and (_open(old[name]) or _open(new[name])):
            verdict = "unclear"
        winners = before.selection.winner, after.selection.winner
        texts = [table.verdict(one[name], winner) for one, winner in zip((old, new), winners, strict=True)]
        found.append(Status(artifact=name, old=texts[0], new=texts[1], verdict=verdict))
    return found


def _open(standing: Standing) -> bool:
    """Tell whether only a busy machine's figures keep it from passing."""
    return bool(standing.missed) and all(gate.verdict == "busy machine" for gate in standing.missed)


def _kind(standing: Standing) -> int:
    """2 passes, 1 does not pass every gate, 0 is unavailable."""
    return 0 if standing.unavailable else 1 if standing.missed else 2


def _missing(side: Side) -> str:
    shown = ", ".join(f"`{path}`" for path in side.missing[:4])
    more = f" and {len(side.missing) - 4} more" if len(side.missing) > 4 else ""
    return (
        f"{side.title}: neither the cache nor the remote has {shown}{more}, so what they hold was not paired. "
        "`dvc pull`, or `dvc fetch --all-commits`, brings what was pushed; older runs kept no figures of each token."
    )
