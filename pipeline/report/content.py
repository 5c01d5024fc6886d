"""What the report says, in its order."""

from collections.abc import Mapping
from dataclasses import dataclass

from evals.statistics import Estimate
from pipeline import metrics
from pipeline.metrics.formats import number, percent
from pipeline.params import LatencyParams, ServingParams
from pipeline.records import (
    Build,
    Checkpoint,
    Corpus,
    Latency,
    Machine,
    Quality,
    Reference,
    Selection,
    Standing,
    Tasks,
)
from pipeline.records.measurements import SERVED
from pipeline.report import blocks, definitions, disturbance, evidence, plots, served, table
from pipeline.report.blocks import Block, Cell, Figure, Items, Log, Prose, Section, Table

Recipe = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a ranking rests on."""

    checkpoint: Checkpoint
    corpus: Corpus
    reference: Reference
    machine: Machine
    recipes: Mapping[str, Recipe]
    builds: Mapping[str, Build]
    quality: Mapping[str, Quality]
    tasks: Mapping[str, Tasks]
    latency: Mapping[str, Latency]
    floors: Mapping[str, str | None]
    """For each artifact, the one of its backend that is not quantized."""
    timing: LatencyParams
    serving: ServingParams
    concurrency: int
    """Streams at which served metrics count."""
    threads: int


def sections(selection: Selection, run: Run) -> tuple[Section, ...]:
    """Return the whole report under its headings; `sentence` stands before them."""
    standings = [standing for standing in selection.ranking if not standing.unavailable]
    missing = [standing for standing in selection.ranking if standing.unavailable and not standing.failure]
    failed = [standing for standing in selection.ranking if standing.failure]
    ranking = [Section(title="Ranking", blocks=(table.ranking(selection), Prose(text=table.STAR)))]
    broken = [Section(title="Failed", blocks=_failed(failed))] if failed else []
    unavailable = [Section(title="Unavailable", blocks=(_unavailable(missing),))] if missing else []
    measured = _measured(standings, selection, run) if standings else []
    return tuple(ranking + broken + unavailable + measured + _basis(selection, run))


def _measured(standings: list[Standing], selection: Selection, run: Run) -> list[Section]:
    """Return what was found out about the artifacts that there are."""
    named = [standing.name for standing in standings]
    quality = table.details("Predictions against the reference's", selection, table.QUALITY)
    divergence = table.details("KL divergence from the reference, nats a token", selection, table.KLD)
    alone = table.details("One stream, without a server", selection, table.SPEED)
    cost = [Section(title="Cost", blocks=evidence.cost(selection))] if selection.cost is not None else []
    return [
        Section(title="Trade-offs", blocks=(Figure(plot="tradeoff"),)),
        Section(title="Gates", blocks=_gates(standings)),
        Section(title="Quality", blocks=(quality,)),
        Section(title="KL divergence", blocks=(divergence,)),
        Section(title="Runtime and quantization", blocks=_floors(standings, selection, run)),
        Section(title="Tasks", blocks=_tasks(standings, run)),
        Section(title="Speed and memory as served", blocks=_served(named, run)),
        Section(title="Speed and memory in process", blocks=(alone,)),
        Section(title="What else ran", blocks=disturbance.section(named, run.latency)),
        *cost,
        Section(title="Predicted and measured", blocks=evidence.predicted(named, run.builds, run.quality, run.latency)),
        Section(title="Parity and structural checks", blocks=evidence.checks(named, run.quality, run.builds)),
        Section(title="How each runtime was set", blocks=_settings(named, run)),
    ]


def _basis(selection: Selection, run: Run) -> list[Section]:
    """Return what the figures rest on."""
    named = [standing.name for standing in selection.ranking]
    definition = Items(items=definitions.definitions(run.timing, run.threads))
    return [
        Section(title="Reference", blocks=(_reference(run),)),
        Section(title="What the numbers mean", blocks=(definition,)),
        Section(
            title="Inputs, tools and machine",
            blocks=(
                *evidence.inputs(run.checkpoint, run.corpus, run.reference, run.machine),
                evidence.artifacts(named, run.recipes, run.quality, run.builds),
                *evidence.again(),
            ),
        ),
    ]


def sentence(selection: Selection, concurrency: int) -> str:
    """Name the winner and say why it is, in one sentence."""
    metric, direction = selection.objective["metric"], selection.objective["direction"]
    aim = ("highest" if direction == "maximize" else "lowest") + f" `{metric}`"
    if metric.startswith("served"):
        aim += f" at {plots.streams(concurrency)}"
    limits = [
        f"`{name}` {relation.replace('_', ' ')} {number(limit)}"
        for name, bound in selection.constraints.items()
        for relation, limit in bound.items()
        if limit is not None
    ]
    rule = " and ".join(limits)
    count = len(selection.ranking)
    passing = [standing for standing in selection.ranking if standing.rank is not None]
    if all(standing.failure for standing in selection.ranking):
        return f"**No artifact was measured**: every one of {count} failed."
    if selection.winner is None:
        return f"**No artifact passes**: none of {count} keeps {rule}." if rule else "**No artifact passes.**"
    among = f"of {len(passing)} artifacts (of {count}) that pass {rule}" if rule else f"of {count} artifacts"
    first = passing[0].metrics[metric]
    failed = [standing.name for standing in selection.ranking if standing.failure]
    but = f" Not counting {len(failed)} that failed: {', '.join(failed)}." if failed else ""
    text = f"**{selection.winner} wins**: {among}, it has the {aim}, {table.estimate(first, number)}"
    if len(passing) == 1:
        return f"{text}.{but}"
    second = passing[1].metrics[metric]
    text += f", ahead of {passing[1].name} with {table.estimate(second, number)}"
    return text + ("; their intervals overlap." if _overlap(first, second) else ".") + but


def _overlap(one: Estimate | None, other: Estimate | None) -> bool:
    if one is None or other is None or one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


def _gates(standings: list[Standing]) -> tuple[Block, ...]:
    rows = []
    for standing in standings:
        for gate in standing.gates:
            limit = f"{gate.metric} {gate.relation.replace('_', ' ')} {number(gate.limit)}"
            answer: str = gate.verdict
            if gate.verdict == "busy machine":
                answer = f"cannot tell: {gate.doubt}; a quiet machine may give another figure"
            elif gate.doubt is not None:
                answer += ", though it was measured on a busy machine"
            if gate.verdict == "not enough data":
                more = (
                    "no amount of text"
                    if gate.more is None
                    else f"{gate.more:,} more {metrics.named(gate.metric).sample}"
                )
                answer += f"; {more} would settle it, should the value stay"
            rows.append(
                (
                    *blocks.words(standing.name, limit),
                    table.figure(gate.found, number),
                    Cell(text=answer, mark=table.noticed([gate]) or "good"),
                )
            )
    if not rows:
        return (Prose(text="`selection.constraints` states none."),)
    note = (
        "A gate is passed when the whole 95 % interval lies within the limit, and failed when all of it lies beyond. "
        "A busy machine slows and never speeds up: a limit on slowness that was kept on one is kept, one that was not "
        "is open."
    )
    return Prose(text=note), blocks.table(
        "Each limit and what was found", ("artifact", "gate", "found", "answer"), rows
    )


def _unavailable(missing: list[Standing]) -> Table:
    rows = [blocks.words(standing.name, standing.unavailable or "") for standing in missing]
    return blocks.table("What could not be built or run here, and why", ("artifact", "reason"), rows)


def _failed(standings: list[Standing]) -> tuple[Block, ...]:
    """Tell what went wrong for each artifact, what tries it again, and what was printed."""
    rows, logs = [], []
    for standing in standings:
        failure = standing.failure
        assert failure is not None
        row = (standing.name, f"{failure.stage}@{failure.artifact}", failure.reason, f"`{failure.again}`")
        rows.append((*blocks.words(*row), Cell(text=str(failure.exit_code), value=failure.exit_code)))
        if failure.log and failure.artifact == standing.name:
            logs.append(Log(title=f"What {failure.stage}@{standing.name} printed last", lines=failure.log))
    note = (
        "Nothing was concluded about these: they were passed over, and `dvc repro` ends with an error because of them."
    )
    header = ("artifact", "stage", "reason", "to try again, before `dvc repro`", "exit code")
    return Prose(text=note), blocks.table("What went wrong, and where", header, rows), *logs


def _floors(standings: list[Standing], selection: Selection, run: Run) -> tuple[Block, ...]:
    """Set each artifact beside the unquantized one in the same runtime."""
    metrics = {standing.name: standing.metrics for standing in selection.ranking}
    rows = []
    for standing in standings:
        floor = run.floors[standing.name]
        if run.quality[standing.name].settings.get("runtime") == run.reference.settings["runtime"]:
            name, base = "the reference's own runtime", 0.0
        elif floor is None:
            name, base = "no unquantized artifact of this backend", None
        else:
            name, base = "itself" if floor == standing.name else floor, None
        cells: list[Cell] = []
        for metric in ("log_perplexity_ratio", "kld_mean"):
            found, of_runtime = standing.metrics[metric], metrics[floor][metric] if floor in metrics else None
            whole, runtime = found.value if found else None, of_runtime.value if of_runtime else base
            beyond = None if whole is None or runtime is None else whole - runtime
            cells += [table.plain(value, lambda v: f"{v:+.5f}") for value in (whole, runtime, beyond)]
        rows.append((*blocks.words(standing.name, name), *cells))
    note = (
        "What an unquantized artifact loses against the reference is its runtime's doing (other kernels, other "
        "rounding, and the rounding of the reference itself); what a quantized one loses beyond that is the "
        "quantization's. Divergences do not add up exactly: take the difference for a guide."
    )
    parts = ("", " of the runtime", " of quantization")
    header = ("artifact", "runtime floor", *(kind + part for kind in ("ln ratio", "KLD") for part in parts))
    return Prose(text=note), blocks.table("What the runtime and what quantization loses", header, rows)


def _tasks(standings: list[Standing], run: Run) -> tuple[Block, ...]:
    rows = []
    for standing in standings:
        for task, found in run.tasks[standing.name].tasks.items():
            rows.append(
                (
                    *blocks.words(standing.name, task),
                    table.plain(found.documents, lambda v: f"{v:,.0f}"),
                    table.figure(found.accuracy, percent(1)),
                    table.figure(found.flips, percent(1)),
                    Cell(text=f"{found.right_to_wrong} / {found.wrong_to_right}", value=found.right_to_wrong),
                    table.plain(found.p_value, lambda v: f"{v:.3f}"),
                )
            )
    impossible = {task: why for found in run.tasks.values() for task, why in found.impossible.items()}
    missing: tuple[Block, ...] = ()
    if impossible:
        reasons = [blocks.words(task, why) for task, why in impossible.items()]
        missing = (blocks.table("Tasks that could not be asked, and why", ("task", "reason"), reasons),)
    if not rows:
        return missing or (Prose(text="params.yaml asks for none."),)
    header = ("artifact", "task", "documents", "accuracy, %", "flips, %", "lost / won", "McNemar p")
    note = (
        "Through lm-evaluation-harness. Against the reference's answers to the same documents: flips are answers that "
        "changed; lost went from right to wrong, won from wrong to right; p is McNemar's exact test."
    )
    return Prose(text=note), blocks.table("Answers to tasks", header, rows), *missing


def _served(named: list[str], run: Run) -> tuple[Block, ...]:
    measured = {name: run.latency[name].served for name in named}
    if not any(measured.values()):
        return (Prose(text="None was measured."),)
    doubted = [
        (name, level.concurrency)
        for name, found in measured.items()
        if found
        for level in found.levels
        if SERVED in run.latency[name].disturbed(level.concurrency)
    ]
    return (
        *served.definitions(run.serving),
        Figure(plot="throughput"),
        served.rates(measured, doubted),
        Figure(plot="waits"),
        served.waits(measured, doubted),
        served.costs(measured),
    )


def _settings(named: list[str], run: Run) -> tuple[Block, ...]:
    """Say what each number depends on beside weights and ids."""
    keys = tuple(run.reference.settings)
    rows = [blocks.words("the reference", *run.reference.settings.values())]
    for name in named:
        settings = run.quality[name].settings
        rows.append(blocks.words(name, *(settings.get(key, "-") for key in keys)))
    return (blocks.table("Runtime and arithmetic", ("artifact", *keys), rows),)


def _reference(run: Run) -> Prose:
    found, evaluation = run.reference.perplexity, run.corpus.evaluation
    return Prose(
        text=f"The checkpoint in {run.reference.dtype} through transformers, its head in float32: perplexity "
        f"{table.estimate(found.perplexity, lambda v: f'{v:.3f}')}, "
        f"{table.estimate(found.bits_per_byte, lambda v: f'{v:.4f}')} bits per byte, on {found.tokens:,} tokens in "
        f"{evaluation.windows} windows of {run.corpus.window_tokens} from {evaluation.documents} documents of "
        f"{evaluation.source}. Calibration is {run.corpus.calibration.windows} windows of "
        f"{run.corpus.calibration.source}; {run.corpus.overlap:.3%} of the evaluation's runs of 13 words occur in it."
    )
