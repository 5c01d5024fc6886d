"""How each number is defined: for both forms of the report, from the metrics' own definitions."""

from pipeline import metrics
from pipeline.params import LatencyParams
from pipeline.report import table


def definitions(timing: LatencyParams, threads: int) -> tuple[str, ...]:
    """Return one definition an item; those of served figures stand beside their tables (served.py)."""
    shown = (metrics.named(name) for name in table.SHOWN)
    return (
        "In brackets: the 95 % interval that the choice of text leaves open. Clusters are documents (windows, where "
        "there is one document); means by the cluster-robust variance and Student's t, quantiles by a bootstrap over "
        "clusters, shares of answers and of identical continuations by Wilson.",
        *(f"{one.title} (`{one.name}`): {one.definition}" for one in shown if one.sample != "requests"),
        f"Speed in process: one stream, {threads} threads, {timing.prompt_tokens} prompt and "
        f"{timing.output_tokens} output tokens, greedy, end-of-sequence ignored; medians of {timing.repeats} repeats "
        f"after {timing.warmup} warm-up.",
    )
