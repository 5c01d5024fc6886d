"""report/report.md: the ranking, and what its numbers mean."""

from dataclasses import dataclass

from pipeline.records import Checkpoint, Corpus, Machine, Reference, Selection
from pipeline.report import table


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a ranking rests on."""

    checkpoint: Checkpoint
    corpus: Corpus
    reference: Reference
    machine: Machine
    latency: dict[str, int]
    threads: int


def report(selection: Selection, run: Run) -> str:
    """Return the whole report."""
    sections = (
        f"# {run.checkpoint.source}",
        _winner(selection),
        ranking(selection),
        _reference(run),
        _definitions(run),
    )
    return "\n\n".join(sections) + "\n"


def ranking(selection: Selection) -> str:
    """Return the ranking as a Markdown table."""
    lines = [table.HEADER, ("--:", ":--", *("--:" for _ in table.COLUMNS), ":--"), *table.rows(selection)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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


def _reference(run: Run) -> str:
    quality, evaluation = run.reference.quality, run.corpus.evaluation
    error = f" ± {quality.perplexity_standard_error:.3f}" if quality.perplexity_standard_error is not None else ""
    return (
        f"The reference is the checkpoint in {run.reference.dtype} through transformers: perplexity "
        f"{quality.perplexity:.3f}{error}, {quality.bits_per_byte:.4f} bits per byte, on {quality.tokens:,} tokens in "
        f"{evaluation.windows} windows of {run.corpus.window_tokens} from {evaluation.documents} documents of "
        f"{evaluation.source}. Calibration is {run.corpus.calibration.windows} windows of "
        f"{run.corpus.calibration.source}; {run.corpus.overlap:.3%} of the evaluation's runs of 13 words occur in it."
    )


def _definitions(run: Run) -> str:
    load, machine = run.latency, run.machine
    return (
        "- `*`: on the Pareto front of size, perplexity and decode speed.\n"
        "- perplexity: exp of the mean negative log-likelihood per token, float32 log-softmax, the same token ids for "
        "every runtime. vs reference: the paired ratio to the reference's, minus one.\n"
        f"- speed: in process, one stream, {run.threads} threads, {load['prompt_tokens']} prompt and "
        f"{load['output_tokens']} output tokens, greedy, end-of-sequence ignored; medians of {load['repeats']} repeats "
        f"after {load['warmup']} warm-up. TTFT: prompt handed over to first token. prefill: prompt tokens / TTFT. "
        "decode: tokens after the first / their time.\n"
        "- peak memory: the process's largest resident set in scoring or timing, interpreter and libraries included.\n"
        f"- machine: {machine.cpu}, {machine.cores} logical CPUs, {machine.memory_gib} GiB, {machine.system} "
        f"{machine.architecture}.\n"
        f"- checkpoint: {run.checkpoint.architecture}, {run.checkpoint.parameters:,} parameters, "
        f"sha256 {run.checkpoint.digest[:16]}; revision {run.checkpoint.revision or 'none (a folder)'}."
    )
