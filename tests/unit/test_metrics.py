"""The table of metrics: whole, told once, and what the documents say."""

import pytest

from pipeline import metrics
from pipeline.metrics import METRICS
from pipeline.report import plots, table
from tests.support import metrics_table


def test_every_metric_that_a_table_or_plot_names_is_there() -> None:
    named = {*table.SHOWN, *table.COST, *plots.AXES}
    assert named <= set(METRICS)
    assert all(METRICS[name].axis for name in plots.AXES)


def test_axes_and_titles_are_of_one_metric_each() -> None:
    fields = [one.axis.field for one in METRICS.values() if one.axis]
    assert len(set(fields)) == len(fields)
    titles = [one.title for one in METRICS.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", ["", "accuracy", "accuracy.", "flips.", "speed.cloze", "perplexity."])
def test_what_is_no_metric_is_not_found(name: str) -> None:
    assert metrics.find(name) is None
    with pytest.raises(KeyError):
        metrics.named(name)


def test_a_metric_of_a_task_bears_its_name() -> None:
    accuracy = metrics.named("accuracy.mmlu.high")
    assert (accuracy.name, accuracy.sample, accuracy.better) == ("accuracy.mmlu.high", "documents", "more")
    assert "mmlu.high" in accuracy.title


def test_only_what_other_processes_can_slow_is_timed() -> None:
    untimed = {name for name, one in METRICS.items() if not one.timed}
    assert {"bytes", "kld_mean", "greedy_length", "peak_rss_bytes", "served_peak_rss_bytes"} <= untimed
    assert all(one.timed for name, one in METRICS.items() if "second" in name or name.startswith(("price", "break")))


def test_the_page_of_metrics_is_that_of_this_table() -> None:
    assert metrics_table.PAGE.read_text(encoding="utf-8") == metrics_table.rendered(), (
        "docs/metrics.md is out of date; run `python -m tests.support.metrics_table`"
    )
