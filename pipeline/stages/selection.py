"""The winner: the best by the objective of the artifacts that pass every constraint."""

import json

from pipeline import machine, paths
from pipeline.errors import SelectionError
from pipeline.params import Bound, Metric, Params, SelectionParams
from pipeline.records import (
    FILE,
    Checkpoint,
    Corpus,
    Failure,
    Latency,
    Machine,
    Quality,
    Reference,
    Selection,
    Standing,
)
from pipeline.report import markdown, table

PARETO: dict[Metric, int] = {"bytes": 1, "perplexity": 1, "decode_tokens_per_second": -1}
"""Axes of the Pareto front; 1 where less is better, -1 where more is."""


def selection(params: Params) -> None:
    """Write selection.json, metrics.json and report/report.md; then SelectionError if nothing passes."""
    measured = [
        (Quality.load(paths.quality(name)), Latency.load(paths.latency(name))) for name in sorted(params.artifacts)
    ]
    result = select(params.selection, measured)
    result.save(paths.SELECTION)
    metrics = {standing.name: standing.metrics for standing in sorted(result.ranking, key=lambda s: s.name)}
    paths.METRICS.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    paths.REPORT.parent.mkdir(exist_ok=True)
    run = markdown.Run(
        checkpoint=Checkpoint.load(paths.CHECKPOINT / FILE),
        corpus=Corpus.load(paths.CORPUS / FILE),
        reference=Reference.load(paths.REFERENCE / FILE),
        machine=Machine.load(paths.MACHINE),
        latency=params.latency.model_dump(),
        threads=params.threads or machine.usable_cores(),
    )
    paths.REPORT.write_text(markdown.report(result, run), encoding="utf-8")
    if result.winner is None:
        raise SelectionError(_nearest_miss(result))


def select(wanted: SelectionParams, measured: list[tuple[Quality, Latency]]) -> Selection:
    """Rank the artifacts: first those that pass, then those that fail, each by the objective, then the unavailable.

    A metric that was not measured fails every constraint on it and loses every comparison. Ties go by name.
    """
    standings = [_standing(wanted, quality, latency) for quality, latency in measured]
    front = [one.name for one in standings if not any(_dominates(other, one) for other in standings if other != one)]
    front = [name for name in front if not _by_name(standings, name).unavailable]
    sign = 1 if wanted.objective.direction == "minimize" else -1

    def order(one: Standing) -> tuple[bool, bool, bool, float, str]:
        value = one.metrics[wanted.objective.metric]
        return bool(one.unavailable), bool(one.failures), value is None, sign * (value or 0), one.name

    ranking = []
    for place, one in enumerate(sorted(standings, key=order), start=1):
        passes = not one.unavailable and not one.failures and one.metrics[wanted.objective.metric] is not None
        ranking.append(one.model_copy(update={"rank": place if passes else None, "pareto": one.name in front}))
    return Selection(
        objective=wanted.objective.model_dump(),
        constraints={metric: bound.model_dump() for metric, bound in wanted.constraints.items()},
        winner=ranking[0].name if ranking and ranking[0].rank else None,
        ranking=tuple(ranking),
        pareto_front=tuple(sorted(front)),
    )


def metrics(quality: Quality, latency: Latency) -> dict[Metric, float | None]:
    """Collect everything that an artifact can be chosen by; None where it was not measured."""
    spreads = latency.ttft_seconds, latency.prefill_tokens_per_second, latency.decode_tokens_per_second
    ttft, prefill, decode = (spread.median if spread else None for spread in spreads)
    peaks = [peak for peak in (quality.peak_rss_bytes, latency.peak_rss_bytes) if peak is not None]
    return {
        "perplexity": quality.perplexity.perplexity if quality.perplexity else None,
        "perplexity_ratio": quality.perplexity_ratio,
        "bits_per_byte": quality.perplexity.bits_per_byte if quality.perplexity else None,
        "bytes": quality.bytes,
        "bits_per_weight": quality.bits_per_weight,
        "peak_rss_bytes": max(peaks, default=None),
        "load_seconds": latency.load_seconds,
        "ttft_seconds": ttft,
        "prefill_tokens_per_second": prefill,
        "decode_tokens_per_second": decode,
    }


def _standing(wanted: SelectionParams, quality: Quality, latency: Latency) -> Standing:
    values = metrics(quality, latency)
    failures = (
        ()
        if quality.unavailable
        else tuple(
            failure
            for metric, bound in wanted.constraints.items()
            for failure in _failures(metric, values[metric], bound)
        )
    )
    return Standing(
        name=quality.name,
        rank=None,
        metrics={str(metric): value for metric, value in values.items()},
        failures=failures,
        unavailable=quality.unavailable,
    )


def _failures(metric: Metric, found: float | None, bound: Bound) -> list[Failure]:
    failures = []
    if bound.at_most is not None and (found is None or found > bound.at_most):
        failures.append(Failure(metric=metric, found=found, limit=bound.at_most, relation="at_most"))
    if bound.at_least is not None and (found is None or found < bound.at_least):
        failures.append(Failure(metric=metric, found=found, limit=bound.at_least, relation="at_least"))
    return failures


def _dominates(one: Standing, other: Standing) -> bool:
    """Tell whether `one` is at least as good on every axis of the front and better on one."""
    pairs = [(one.metrics[m], other.metrics[m], sign) for m, sign in PARETO.items()]
    if any(mine is None for mine, _, _ in pairs):
        return False
    if any(theirs is None for _, theirs, _ in pairs):
        return True
    differences = [sign * (mine - theirs) for mine, theirs, sign in pairs if mine is not None and theirs is not None]
    return all(difference <= 0 for difference in differences) and any(difference < 0 for difference in differences)


def _by_name(standings: list[Standing], name: str) -> Standing:
    return next(one for one in standings if one.name == name)


def _nearest_miss(result: Selection) -> str:
    """Name the artifact whose worst violation, relative to its limit, is smallest."""

    def worst(one: Standing) -> float:
        return max(
            abs(f.found - f.limit) / abs(f.limit or 1.0) if f.found is not None else float("inf") for f in one.failures
        )

    failing = [one for one in result.ranking if one.failures]
    if not failing:
        return "selection: no artifact was measured; see report/report.md for the reasons"
    nearest = min(failing, key=worst)
    misses = ", ".join(
        f"{f.metric} is {table.number(f.found)}, {f.relation} {table.number(f.limit)}" for f in nearest.failures
    )
    return (
        f"selection: none of {len(result.ranking)} artifacts passes every constraint. "
        f"The nearest miss is {nearest.name}: {misses}. Loosen selection.constraints in params.yaml "
        "or add artifacts; selection.json holds all figures"
    )
