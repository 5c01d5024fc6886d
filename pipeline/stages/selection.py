"""The winner: the best by the objective of the artifacts that pass every gate."""

import json
import math
from collections.abc import Iterator, Sequence

from evals.statistics import Estimate
from pipeline import machine, metrics, outputs, paths
from pipeline.errors import SelectionError
from pipeline.metrics import Measured, Metric
from pipeline.params import Params, SelectionParams
from pipeline.progress import note
from pipeline.records import (
    FILE,
    Build,
    Checkpoint,
    Corpus,
    Gate,
    Latency,
    Machine,
    Quality,
    Reference,
    Selection,
    Standing,
    Tasks,
)
from pipeline.report import content, disturbance, table, write
from pipeline.stages import cost, failure

PARETO = {"bytes": 1, "perplexity": 1, "served_output_tokens_per_second": -1}
"""Axes of the Pareto front; 1 where less is better, -1 where more is."""


def selection(params: Params) -> None:
    """Write selection.json, metrics.json and the report; then SelectionError if nothing passes."""
    here = Machine.load(paths.MACHINE)
    price = cost.cost(params.cost, here, params.selection)
    measured = {
        name: Measured(
            quality=Quality.load(paths.quality(name)),
            latency=Latency.load(paths.latency(name)),
            tasks=Tasks.load(paths.tasks(name)),
            concurrency=params.selection.concurrency,
            cost=price,
        )
        for name in sorted(params.artifacts)
    }
    result = select(params.selection, list(measured.values()))
    result.save(paths.SELECTION)
    figures = {
        one.name: {metric: _figure(value) for metric, value in one.metrics.items()}
        for one in sorted(result.ranking, key=lambda one: one.name)
    }
    outputs.replace(paths.METRICS, json.dumps(figures, indent=2, allow_nan=False) + "\n")
    run = content.Run(
        checkpoint=Checkpoint.load(paths.CHECKPOINT / FILE),
        corpus=Corpus.load(paths.CORPUS / FILE),
        reference=Reference.load(paths.REFERENCE / FILE),
        machine=here,
        recipes={name: recipe.model_dump() for name, recipe in params.artifacts.items()},
        builds={name: Build.load(paths.build(name)) for name in measured},
        quality={name: one.quality for name, one in measured.items()},
        tasks={name: one.tasks for name, one in measured.items()},
        latency={name: one.latency for name, one in measured.items()},
        floors=floors(params),
        timing=params.latency,
        serving=params.serving,
        concurrency=params.selection.concurrency,
        threads=params.threads or machine.usable_cores(),
    )
    write.write(result, run)
    for line in disturbance.lines(result):
        note(line)
    if result.winner is None:
        raise SelectionError("\n".join([_nearest_miss(result), *failure.listed(result)]))


def select(wanted: SelectionParams, measured: Sequence[Measured]) -> Selection:
    """Rank the artifacts: first those that pass, then those that do not, each by the objective, then the unavailable.

    A metric that was not measured passes no gate and loses every comparison. Ties go by name.
    """
    standings = [_standing(wanted, one) for one in measured]
    available = [one for one in standings if not one.unavailable]
    front = [one.name for one in available if not any(_dominates(other, one) for other in available if other != one)]
    sign = 1 if wanted.objective.direction == "minimize" else -1

    def order(one: Standing) -> tuple[bool, bool, bool, float, str]:
        value = one.metrics.get(wanted.objective.metric)
        return bool(one.unavailable), bool(one.missed), value is None, sign * (value.value if value else 0), one.name

    ranking = []
    for place, one in enumerate(sorted(standings, key=order), start=1):
        passes = not one.unavailable and not one.missed and one.metrics.get(wanted.objective.metric) is not None
        ranking.append(one.model_copy(update={"rank": place if passes else None, "pareto": one.name in front}))
    return Selection(
        objective=wanted.objective.model_dump(),
        constraints={metric: bound.model_dump() for metric, bound in wanted.constraints.items()},
        winner=ranking[0].name if ranking and ranking[0].rank else None,
        ranking=tuple(ranking),
        pareto_front=tuple(sorted(front)),
        cost=measured[0].cost if measured else None,
    )


def gate(
    metric: Metric, relation: str, limit: float, found: Estimate | None, sample: int | None, doubt: str | None = None
) -> Gate:
    """Hold one figure against one limit: its interval must lie within it, or, having none, its value.

    An interval shrinks with the square root of the sample, so n more bring its end to the limit when
    sample + n = sample x (reach / distance)^2, reach being from the value to the interval's end on the limit's side.

    `doubt` says that the figure is a busy machine's. That slows and never speeds up, so a limit on slowness that was
    kept would be kept on a quiet machine, too; one that was not kept is open, and passes nothing.
    """
    verdict, more = "not measured", None
    if found is not None:
        sign = 1 if relation == "at_most" else -1
        # Turned so that less is better.
        value, bound = sign * found.value, sign * limit
        ends = [value if end is None else sign * end for end in (found.low, found.high)]
        if max(ends) <= bound:
            verdict = "passes"
        elif min(ends) > bound:
            verdict = "fails"
        else:
            verdict = "not enough data"
            reach = max(ends) - value if value <= bound else value - min(ends)
            if sample is not None and value != bound:
                more = max(1, math.ceil(sample * ((reach / (value - bound)) ** 2 - 1)))
    if doubt is not None and found is not None:
        slowed = "at_least" if metric.better == "more" else "at_most"
        if verdict != ("passes" if relation == slowed else "fails"):
            verdict, more = "busy machine", None
    fields = {"metric": metric.name, "relation": relation, "limit": limit, "found": found}
    return Gate.model_validate({**fields, "verdict": verdict, "more": more, "doubt": doubt})


def floors(params: Params) -> dict[str, str | None]:
    """Name, for each artifact, the one of its backend that is not quantized; None where there is none.

    What that one loses against the reference is the runtime's doing, and no quantization's.
    """
    exact = {recipe.backend: name for name, recipe in params.artifacts.items() if not recipe.quantized}
    return {name: exact.get(recipe.backend) for name, recipe in params.artifacts.items()}


def _standing(wanted: SelectionParams, measured: Measured) -> Standing:
    missing = next((one for one in (measured.quality, measured.latency, measured.tasks) if one.unavailable), None)
    found = Standing(
        name=measured.quality.name,
        rank=None,
        metrics=metrics.values(measured),
        unavailable=missing.unavailable if missing else None,
        failure=missing.failure if missing else None,
        disturbed=measured.latency.disturbed(measured.concurrency),
    )
    return found if missing else found.model_copy(update={"gates": tuple(_gates(wanted, measured, found))})


def _gates(wanted: SelectionParams, measured: Measured, standing: Standing) -> Iterator[Gate]:
    for name, bound in wanted.constraints.items():
        metric = metrics.named(name)
        for relation in ("at_most", "at_least"):
            limit = getattr(bound, relation)
            if limit is not None:
                found, doubt = standing.metrics.get(name), metric.doubt(standing)
                yield gate(metric, relation, limit, found, metric.count(measured), doubt)


def _figure(found: Estimate | None) -> float | dict[str, float | None] | None:
    """Give a figure as metrics.json holds it: with its interval where it has one."""
    if found is None:
        return None
    if found.low is None:
        return found.value
    return {"value": found.value, "low": found.low, "high": found.high}


def _dominates(one: Standing, other: Standing) -> bool:
    """Tell whether `one` is at least as good on every axis of the front and better on one."""
    pairs = [(one.metrics[m], other.metrics[m], sign) for m, sign in PARETO.items()]
    if any(mine is None for mine, _, _ in pairs):
        return False
    if any(theirs is None for _, theirs, _ in pairs):
        return True
    differences = [sign * (mine.value - theirs.value) for mine, theirs, sign in pairs if mine and theirs]
    return all(difference <= 0 for difference in differences) and any(difference < 0 for difference in differences)


def _nearest_miss(result: Selection) -> str:
    """Name the artifact whose worst violation, relative to its limit, is smallest."""

    def worst(one: Standing) -> float:
        return max(
            abs(gate.found.value - gate.limit) / abs(gate.limit or 1.0) if gate.found is not None else float("inf")
            for gate in one.missed
        )

    failing = [one for one in result.ranking if one.missed]
    if not failing:
        return "selection: no artifact was measured; report/report.md has the reasons"
    nearest = min(failing, key=worst)
    misses = "; ".join(table.missed(gate) for gate in nearest.missed)
    open_ = [one.name for one in failing if any(gate.verdict == "busy machine" for gate in one.missed)]
    if open_:
        return (
            f"selection: none of {len(result.ranking)} artifacts passes every constraint, but limits on speed are open "
            f"for {', '.join(open_)}, measured on a busy machine; the nearest is {nearest.name}: {misses}. Let the "
            f"machine come to rest and run `{disturbance.again(open_)}`"
        )
    return (
        f"selection: none of {len(result.ranking)} artifacts passes every constraint. "
        f"The nearest miss is {nearest.name}: {misses}. Loosen selection.constraints in params.yaml "
        "or add artifacts; selection.json holds all figures"
    )
