"""report/report.md: the ranking, every figure with its interval, and what the numbers mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.params import LatencyParams, ServingParams
from pipeline.records import Checkpoint, Corpus, Latency, Machine, Quality, Reference, Selection, Standing, Tasks
from pipeline.report import served, table


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a ranking rests on."""

    checkpoint: Checkpoint
    corpus: Corpus
    reference: Reference
    machine: Machine
    quality: Mapping[str, Quality]
    tasks: Mapping[str, Tasks]
    latency: Mapping[str, Latency]
    floors: Mapping[str, str | None]
    """For each artifact, the one of its backend that is not quantized."""
    timing: LatencyParams
    serving: ServingParams
    threads: int


def report(selection: Selection, run: Run) -> str:
    """Return the whole report."""
    sections = (
        f"# {run.checkpoint.source}",
        _winner(selection),
        ranking(selection),
        "## Gates\n\n" + _gates(selection),
        "## Quality\n\n" + _markdown(*table.details(selection, table.QUALITY)),
        "### KL divergence from the reference, nats a token\n\n" + _markdown(*table.details(selection, table.KLD)),
        "## Runtime and quantization\n\n" + _floors(selection, run),
        "## Tasks\n\n" + _tasks(selection, run),
        "## Speed and memory as served\n\n" + _served(selection, run),
        "## Speed and memory in process\n\n" + _markdown(*table.details(selection, table.SPEED)),
        "## Reference\n\n" + _reference(run),
        "## What the numbers mean\n\n" + _definitions(run),
        "## How each runtime was set\n\n" + _settings(selection, run),
    )
    return "\n\n".join(sections) + "\n"


def ranking(selection: Selection) -> str:
    """Return the ranking as a Markdown table."""
    return _markdown(*table.ranking(selection))


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    texts = {"artifact", "verdict", "task", "gate", "runtime floor", "answer", "runtime", "attention", "dtype"}
    alignment = [":--" if title in texts else "--:" for title in header]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, alignment, *rows))


def _winner(selection: Selection) -> str:
    goal = f"{selection.objective['direction']} {selection.objective['metric']}"
    limits = [
        f"{metric} {relation.replace('_', ' ')} {table.number(limit)}"
        for metric, bound in selection.constraints.items()
        for relation, limit in bound.items()
        if limit is not None
    ]
    rule = f"{goal}, subject to {' and '.join(limits)}" if limits else goal
    if selection.winner is None:
        return f"**No artifact passes.** The rule: {rule}."
    return f"**Winner: {selection.winner}.** The rule: {rule}."


def _gates(selection: Selection) -> str:
    rows = []
    for standing in _available(selection):
        for gate in standing.gates:
            limit = f"{gate.metric} {gate.relation.replace('_', ' ')} {table.number(gate.limit)}"
            answer: str = gate.verdict
            if gate.verdict == "not enough data":
                more = "no amount of text" if gate.more is None else f"{gate.more:,} more {table.unit(gate.metric)}"
                answer += f"; {more} would settle it, should the value stay"
            rows.append((standing.name, limit, table.estimate(gate.found, table.number), answer))
    if not rows:
        return "selection.constraints states none."
    note = "A gate is passed when the whole 95 % interval lies within the limit, and failed when all of it lies beyond."
    return f"{note}\n\n{_markdown(('artifact', 'gate', 'found', 'answer'), rows)}"


def _floors(selection: Selection, run: Run) -> str:
    """Set each artifact beside the unquantized one in the same runtime."""
    metrics = {standing.name: standing.metrics for standing in selection.ranking}
    rows = []
    for standing in _available(selection):
        floor = run.floors[standing.name]
        if run.quality[standing.name].settings.get("runtime") == run.reference.settings["runtime"]:
            name, base = "the reference's own runtime", 0.0
        elif floor is None:
            name, base = "no unquantized artifact of this backend", None
        else:
            name, base = "itself" if floor == standing.name else floor, None
        cells = []
        for metric in ("log_perplexity_ratio", "kld_mean"):
            whole, of_runtime = standing.metrics[metric], metrics[floor][metric] if floor in metrics else None
            runtime = of_runtime.value if of_runtime else base
            values = (whole and whole.value, runtime, whole.value - runtime if whole and runtime is not None else None)
            cells += ["-" if value is None else f"{value:+.5f}" for value in values]
        rows.append((standing.name, name, *cells))
    parts = ("of the runtime", "of quantization")
    note = (
        "What an unquantized artifact loses against the reference is its runtime's doing (other kernels, other "
        "rounding, and the rounding of the reference itself); what a quantized one loses beyond that is the "
        "quantization's. Divergences do not add up exactly: take the difference for a guide."
    )
    return f"{note}\n\n{_markdown(('artifact', 'runtime floor', 'ln ratio', *parts, 'KLD', *parts), rows)}"


def _tasks(selection: Selection, run: Run) -> str:
    rows = []
    for standing in _available(selection):
        for task, found in run.tasks[standing.name].tasks.items():
            rows.append(
                (
                    standing.name,
                    task,
                    f"{found.documents:,}",
                    table.estimate(found.accuracy, table.percent(1)),
                    table.estimate(found.flips, table.percent(1)),
                    f"{found.right_to_wrong} / {found.wrong_to_right}",
                    f"{found.p_value:.3f}",
                )
            )
    if not rows:
        return "params.yaml asks for none."
    header = ("artifact", "task", "documents", "accuracy, %", "flips, %", "lost / won", "McNemar p")
    note = (
        "Through lm-evaluation-harness. Against the reference's answers to the same documents: flips are answers that "
        "changed; lost went from right to wrong, won from wrong to right; p is McNemar's exact test."
    )
    return f"{note}\n\n{_markdown(header, rows)}"


def _served(selection: Selection, run: Run) -> str:
    measured = {one.name: run.latency[one.name].served for one in _available(selection)}
    tables = (served.rates(measured), served.waits(measured), served.costs(measured))
    return "\n\n".join((served.definitions(run.serving), *(_markdown(*one) for one in tables)))


def _settings(selection: Selection, run: Run) -> str:
    """Say what each number depends on beside weights and ids, and whether it repeats."""
    rows = [("the reference", *run.reference.settings.values(), "-")]
    for standing in _available(selection):
        quality = run.quality[standing.name]
        rows.append((standing.name, *quality.settings.values(), "yes" if quality.repeats_to_the_bit else "**no**"))
    note = "Repeats: the first window, scored again after all others, gave the same figures to the last bit."
    return f"{note}\n\n{_markdown(('artifact', *run.reference.settings, 'repeats'), rows)}"


def _available(selection: Selection) -> list[Standing]:
    return [standing for standing in selection.ranking if not standing.unavailable]


def _reference(run: Run) -> str:
    found, evaluation = run.reference.perplexity, run.corpus.evaluation
    return (
        f"The checkpoint in {run.reference.dtype} through transformers, its head in float32: perplexity "
        f"{table.estimate(found.perplexity, lambda v: f'{v:.3f}')}, "
        f"{table.estimate(found.bits_per_byte, lambda v: f'{v:.4f}')} bits per byte, on {found.tokens:,} tokens in "
        f"{evaluation.windows} windows of {run.corpus.window_tokens} from {evaluation.documents} documents of "
        f"{evaluation.source}. Calibration is {run.corpus.calibration.windows} windows of "
        f"{run.corpus.calibration.source}; {run.corpus.overlap:.3%} of the evaluation's runs of 13 words occur in it."
    )


def _definitions(run: Run) -> str:
    timing, machine = run.timing, run.machine
    return (
        "- In brackets: the 95 % interval that the choice of text leaves open. Clusters are documents (windows, where "
        "there is one document); means by the cluster-robust variance and Student's t, quantiles by a bootstrap over "
        "clusters, shares of answers and of identical continuations by Wilson.\n"
        "- `*`: on the Pareto front of size, perplexity and served tokens/s.\n"
        "- perplexity: exp of the mean negative log-likelihood per token, on the same token ids for every runtime. "
        "vs reference: the ratio to the reference's, paired token by token, minus one. ln ratio: its logarithm.\n"
        "- KLD: Kullback-Leibler divergence D(reference || artifact) of the next-token distributions, over the whole "
        "vocabulary, exact. top-1 agreement: share of tokens for which both find the same token likeliest. Δp: change "
        "in the probability of the token that follows.\n"
        "- greedy: continuations of beginnings of evaluation windows, compared with the reference's.\n"
        "- chat template: share of test conversations that the artifact's own runtime renders to the checkpoint's ids."
        "\n"
        f"- speed in process: one stream, {run.threads} threads, {timing.prompt_tokens} prompt and "
        f"{timing.output_tokens} output tokens, greedy, end-of-sequence ignored; medians of {timing.repeats} repeats "
        f"after {timing.warmup} warm-up. TTFT: prompt handed over to first token. prefill: prompt tokens / TTFT. "
        "decode: tokens after the first / their time.\n"
        "- peak memory: the process's largest resident set in scoring or timing, interpreter and libraries included.\n"
        f"- machine: {machine.cpu}, {machine.cores} logical CPUs, {machine.memory_gib} GiB, {machine.system} "
        f"{machine.architecture}.\n"
        f"- checkpoint: {run.checkpoint.architecture}, {run.checkpoint.parameters:,} parameters, "
        f"sha256 {run.checkpoint.digest[:16]}; revision {run.checkpoint.revision or 'none (a folder)'}."
    )
