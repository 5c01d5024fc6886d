"""docs/metrics.md, made from the metrics themselves: `python -m tests.support.metrics_table` writes it anew."""

from pathlib import Path

from pipeline.metrics import METRICS, Metric, named

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

HEAD = """\
# Metrics

What `selection.objective` and `selection.constraints` in `params.yaml` may name, and what `metrics.json` and
`selection.json` hold. "served" is behind the gateway at `selection.concurrency` streams; the other speeds are of one
stream in process. The margin is the change that nobody would act on, or that two runs of one and the same thing show:
`assay compare` calls a difference better or worse where its whole 95 % interval lies beyond the margin. The last column
names what more of would make the interval narrower.

| name | better | margin | what it is | sample |
|---|---|---|---|---|
"""


def rendered() -> str:
    """Return the page."""
    return HEAD + "".join(map(_row, (*METRICS.values(), named("accuracy.TASK"), named("flips.TASK"))))


def _row(metric: Metric) -> str:
    of = " of the value" if metric.scale == "%" and metric.margin else ""
    sample = "none: it is exact" if metric.exact else metric.sample
    return f"| `{metric.name}` | {metric.better} | {metric.margin_text}{of} | {metric.definition} | {sample} |\n"


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
