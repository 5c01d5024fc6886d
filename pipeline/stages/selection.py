"""The winner: the best by the objective of the artifacts that pass every gate."""

import json
import math

from evals.load import QUANTILES
from evals.statistics import Estimate
from pipeline import machine, paths
from pipeline.errors import SelectionError
from pipeline.params import Params, SelectionParams
from pipeline.progress import note
from pipeline.records import (
    FILE,
    Build,
    Checkpoint,
    Corpus,
    Cost,
    Gate,
    Latency,
    Machine,
    Quality,
    Reference,
    Selection,
    Served,
    Standing,
    Tasks,
)
from pipeline.records.measurements import part_of
from pipeline.report import content, disturbance, table, write
from pipeline.stages import cost, failure

Measured = tuple[Quality, Latency, Tasks]

PARETO = {"bytes": 1, "perplexity": 1, "served_output_tokens_per_second": -1}
"""Axes of the Pareto front; 1 where less is better, -1 where more is."""


def selection(params: Params) -> None:
    """Write selection.json, metrics.json and the report; then SelectionError if nothing passes."""
    measured = {
        name: (
            Quality.load(paths.quality(name)),
            Latency.load(paths.latency(name)),
            Tasks.load(paths.tasks(name)),
        )
        for name in sorted(params.artifacts)
    }
    here = Machine.load(paths.MACHINE)
    price = cost.cost(params.cost, here, params.selection)
    result = select(params.selection, list(measured.values()), price)
    result.save(paths.SELECTION)
    figures = {
        one.name: {metric: _figure(value) for metric, value in one.metrics.items()}
        for one in sorted(result.ranking, key=lambda one: one.name)
    }
    write.replace(paths.METRICS, json.dumps(figures, indent=2, allow_nan=False) + "\n")
    run = content.Run(
        checkpoint=Checkpoint.load(paths.CHECKPOINT / FILE),
        corpus=Corpus.load(paths.CORPUS / FILE),
        reference=Reference.load(paths.REFERENCE / FILE),
        machine=here,
        recipes={name: recipe.model_dump() for name, recipe in params.artifacts.items()},
        builds={name: Build.load(paths.build(name)) for name in measured},
        quality={name: quality for name, (quality, _, _) in measured.items()},
        tasks={name: tasks for name, (_, _, tasks) in measured.items()},
        latency={name: latency for name, (_, latency, _) in measured.items()},
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


def select(wanted: SelectionParams, measured: list[Measured], price: Cost | None = None) -> Selection:
    """Rank the artifacts: first those that pass, then those that do not, each by the objective, then the unavailable.

    A metric that was not measured passes no gate and loses every comparison. Ties go by name.
    """
    standings = [_standing(wanted, price, *one) for one in measured]
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
        cost=price,
    )


def metrics(
    quality: Quality, latency: Latency, tasks: Tasks, concurrency: int, price: Cost | None = None
) -> dict[str, Estimate | None]:
    """Collect everything that an artifact can be chosen by, as served to so many streams; None if not measured."""
    perplexity, divergence, greedy = quality.perplexity, quality.divergence, quality.greedy
    peaks = [peak for peak in (quality.peak_rss_bytes, latency.peak_rss_bytes) if peak is not None]
    on_gpu = [peak for peak in (quality.peak_gpu_bytes, latency.peak_gpu_bytes) if peak is not None]
    spreads = latency.ttft_seconds, latency.prefill_tokens_per_second, latency.decode_tokens_per_second
    ttft, prefill, decode = (_plain(spread.median if spread else None) for spread in spreads)
    found = {
        "perplexity": perplexity.perplexity if perplexity else None,
        "perplexity_ratio": quality.perplexity_ratio,
        "log_perplexity_ratio": quality.log_perplexity_ratio,
        "bits_per_byte": perplexity.bits_per_byte if perplexity else None,
        "kld_mean": divergence.mean if divergence else None,
        "kld_median": divergence.median if divergence else None,
        "kld_p95": divergence.p95 if divergence else None,
        "kld_p99": divergence.p99 if divergence else None,
        "kld_p999": divergence.p999 if divergence else None,
        "kld_maximum": _plain(divergence.maximum if divergence else None),
        "top1_agreement": divergence.top1_agreement if divergence else None,
        "delta_p_mean": divergence.delta_p_mean if divergence else None,
        "delta_p_rms": divergence.delta_p_rms if divergence else None,
        "greedy_length": greedy.length if greedy else None,
        "greedy_identical": greedy.identical if greedy else None,
        "chat_template_agreement": _plain(quality.chat_template_agreement),
        "bytes": _plain(quality.bytes),
        "bits_per_weight": _plain(quality.bits_per_weight),
        "peak_rss_bytes": _plain(max(peaks, default=None)),
        "peak_gpu_bytes": _plain(max(on_gpu, default=None)),
        "load_seconds": _plain(latency.load_seconds),
        "ttft_seconds": ttft,
        "prefill_tokens_per_second": prefill,
        "decode_tokens_per_second": decode,
        **_served(latency.served, concurrency),
    }
    found |= cost.metrics(price, found["served_output_tokens_per_second"])
    for name, task in tasks.tasks.items():
        found |= {f"accuracy.{name}": task.accuracy, f"flips.{name}": task.flips}
    return found


def _served(served: Served | None, concurrency: int) -> dict[str, Estimate | None]:
    level = served.at(concurrency) if served else None
    found = {
        "served_output_tokens_per_second": level.output_tokens_per_second if level else None,
        "served_requests_per_second": level.requests_per_second if level else None,
        "served_goodput_requests_per_second": level.goodput_requests_per_second if level else None,
        "served_load_seconds": _plain(served.load_seconds if served else None),
        "served_peak_rss_bytes": _plain(served.peak_rss_bytes if served else None),
        "served_peak_gpu_bytes": _plain(served.peak_gpu_bytes if served else None),
    }
    for kind in ("ttft", "tpot", "itl", "end_to_end"):
        quantiles = getattr(level, f"{kind}_seconds") if level else None
        found |= {f"served_{kind}_seconds_{name}": getattr(quantiles, name, None) for name in QUANTILES}
    return found


def gate(
    metric: str, relation: str, limit: float, found: Estimate | None, sample: int | None, doubt: str | None = None
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
        slowed = "at_least" if metric.endswith("_per_second") else "at_most"
        if verdict != ("passes" if relation == slowed else "fails"):
            verdict, more = "busy machine", None
    fields = {"metric": metric, "relation": relation, "limit": limit, "found": found}
    return Gate.model_validate({**fields, "verdict": verdict, "more": more, "doubt": doubt})


def floors(params: Params) -> dict[str, str | None]:
    """Name, for each artifact, the one of its backend that is not quantized; None where there is none.

    What that one loses against the reference is the runtime's doing, and no quantization's.
    """
    exact = {recipe.backend: name for name, recipe in params.artifacts.items() if not recipe.quantized}
    return {name: exact.get(recipe.backend) for name, recipe in params.artifacts.items()}


def _standing(
    wanted: SelectionParams, price: Cost | None, quality: Quality, latency: Latency, tasks: Tasks
) -> Standing:
    found = metrics(quality, latency, tasks, wanted.concurrency, price)
    missing = next((one for one in (quality, latency, tasks) if one.unavailable), None)
    return Standing(
        name=quality.name,
        rank=None,
        metrics=found,
        gates=() if missing else _gates(wanted, found, quality, latency, tasks),
        unavailable=missing.unavailable if missing else None,
        failure=missing.failure if missing else None,
        disturbed=latency.disturbed(wanted.concurrency),
    )


def _gates(
    wanted: SelectionParams, found: dict[str, Estimate | None], quality: Quality, latency: Latency, tasks: Tasks
) -> tuple[Gate, ...]:
    gates = []
    level = latency.served.at(wanted.concurrency) if latency.served else None
    disturbed = latency.disturbed(wanted.concurrency)
    for metric, bound in wanted.constraints.items():
        kind, _, task = metric.partition(".")
        sample = quality.windows
        if task in tasks.tasks:
            sample = tasks.tasks[task].documents
        elif kind.startswith("greedy") and quality.greedy:
            sample = quality.greedy.prompts
        elif kind.startswith(("served", "price", "break_even")) and level:
            sample = len(level.exchanges)
        for relation in ("at_most", "at_least"):
            limit = getattr(bound, relation)
            if limit is not None:
                doubt = disturbed.get(part_of(metric) or "")
                gates.append(gate(metric, relation, limit, found.get(metric), sample, doubt))
    return tuple(gates)


def _plain(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(value=value)


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
