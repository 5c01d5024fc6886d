"""What the report says is what the records hold, in both of its forms."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from evals.statistics import Estimate
from pipeline import metrics
from pipeline.metrics import METRICS, formats
from pipeline.records import Cost, Gate, Selection, measurements
from pipeline.report import content, disturbance, markdown, page, plots, table
from pipeline.report.blocks import Prose, Table
from tests.support import reports
from tests.support.disturbed import BUSY, QUIET, watched
from tests.support.reports import around, finished

LARGEST_PAGE_BYTES = 3_000_000


class Page(HTMLParser):
    """The tables of a page: for each its rows, for each of these the cells as (text, value)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[str, float | None]]]] = []
        self.text = ""
        self._skipping = self._hidden = self._cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self._skipping = tag in ("script", "style")
        self._hidden = found.get("aria-hidden") == "true"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            value = found.get("data-value")
            self._cell = True
            self.tables[-1][-1].append(("", float(value) if value is not None else None))

    def handle_endtag(self, tag: str) -> None:
        self._skipping = self._hidden = False
        if tag in ("th", "td"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._skipping or self._hidden:
            return
        self.text += data
        if self._cell:
            text, value = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (text + data, value)


@pytest.fixture(scope="module")
def run() -> tuple[Selection, content.Run]:
    return finished(12)


@pytest.fixture(scope="module")
def html(run: tuple[Selection, content.Run]) -> str:
    return page.page(*run)


def test_a_task_that_could_not_be_asked_is_said_with_its_reason(run: tuple[Selection, content.Run]) -> None:
    selection, found = run
    reason = "the evaluation text gives no items"
    tasks = {
        name: one.model_copy(update={"tasks": {}, "impossible": {"cloze": reason}}) for name, one in found.tasks.items()
    }
    text = markdown.report(selection, dataclasses.replace(found, tasks=tasks))
    assert f"| cloze | {reason} |" in text
    assert "Answers to tasks" not in text


def embedded(html: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_every_figure_of_the_ranking_is_the_records(run: tuple[Selection, content.Run], html: str) -> None:
    ranking, _ = run
    _, *rows = Page(html).tables[0]
    assert len(rows) == len(ranking.ranking)
    columns = [metric for metric in map(metrics.named, table.RANKING) if not metric.optional]
    for row, standing in zip(rows, ranking.ranking, strict=True):
        figures = row[2:-1]
        assert len(figures) == len(columns)
        for (text, value), column in zip(figures, columns, strict=True):
            found = standing.metrics[column.name]
            assert value == (None if found is None else found.value)
            assert text.strip() == table.estimate(found, column.show)


def test_figures_read_as_the_field_writes_them() -> None:
    found = Estimate(value=1.0030231, low=1.0012724, high=1.0047770)
    assert table.estimate(found, METRICS["perplexity_ratio"].show) == "+0.30 [+0.13, +0.48]"
    assert table.estimate(around(0.00481, 0.00053), METRICS["kld_mean"].show) == "0.00481 [0.00428, 0.00534]"
    assert table.estimate(Estimate(value=4332384), METRICS["bytes"].show) == "4.1 MiB"


def test_page_and_markdown_have_the_same_tables_and_texts(run: tuple[Selection, content.Run], html: str) -> None:
    shown, text = Page(html), markdown.report(*run)
    tables = [block for section in content.sections(*run) for block in section.blocks if isinstance(block, Table)]
    assert len(tables) == len(shown.tables)
    for wanted, (header, *rows) in zip(tables, shown.tables, strict=True):
        assert [cell for cell, _ in header] == list(wanted.header)
        plain = [[cell.text.replace("`", "") for cell in row] for row in wanted.rows]
        assert [[cell.strip() for cell, _ in row] for row in rows] == plain
        assert markdown.rendered(wanted) in text
    for section in content.sections(*run):
        assert section.title in shown.text
        for block in section.blocks:
            if isinstance(block, Prose):
                assert block.text in text
                assert block.text.replace("`", "") in shown.text


def test_plots_show_the_records(run: tuple[Selection, content.Run], html: str) -> None:
    ranking, measured = run
    data = embedded(html)
    shown = [standing for standing in ranking.ranking if not standing.unavailable]
    for row, standing in zip(data["artifacts"], shown, strict=True):
        ratio, size = standing.metrics["perplexity_ratio"], standing.metrics["bytes"]
        assert ratio is not None
        assert ratio.high is not None
        assert size is not None
        assert row["artifact"] == standing.name
        assert row["perplexity_increase_percent"] == pytest.approx(100 * (ratio.value - 1))
        assert row["perplexity_increase_percent_high"] == pytest.approx(100 * (ratio.high - 1))
        assert row["size_mib"] * 2**20 == size.value
        assert row["passes"] == (standing.rank is not None)
    served = measured.latency[shown[0].name].served
    assert served is not None
    for row, level in zip(data["levels"], served.levels, strict=False):
        assert row["streams"] == level.concurrency
        assert row["output_tokens_per_second"] == level.output_tokens_per_second.value
    waits = [1000 * one.ttft_seconds for one in served.levels[0].exchanges]
    assert data["waits"][0]["ttft_ms"] == pytest.approx(sorted(waits), rel=1e-3)


def test_of_many_waits_the_page_keeps_order_statistics_and_dvc_all() -> None:
    _, run = finished(1, requests=92)
    served = {name: one.served for name, one in run.latency.items()}
    level = next(one for one in plots.waits(served) if one["streams"] == 4)
    raw = sorted(row["ttft_ms"] for row in plots.requests(served) if row["streams"] == 4)
    assert len(raw) == 4 * 92
    assert len(level["ttft_ms"]) == plots.MOST_POINTS
    assert (level["ttft_ms"][0], level["ttft_ms"][-1]) == pytest.approx((raw[0], raw[-1]), rel=1e-3)
    assert level["ttft_ms"][49] == pytest.approx(raw[round(49 * 367 / 99)], rel=1e-3)


def test_what_is_unavailable_has_its_reason_and_no_figures(run: tuple[Selection, content.Run], html: str) -> None:
    text = markdown.report(*run)
    shown = Page(html)
    assert shown.text.count(reports.WHY) == 2, "in the ranking, and in a table of its own"
    assert "<b>of compute" not in html, "texts of records are no markup"
    assert text.count(reports.WHY.replace("|", "\\|").replace("<", "&lt;")) == 2, "a bar would end the cell"
    (row,) = (row for row in shown.tables[0] if row[1][0] == reports.GONE)
    assert all(value is None for _, value in row)
    assert reports.GONE not in [row["artifact"] for row in embedded(html)["artifacts"]]


def test_a_gate_that_is_not_passed_is_told_with_both_numbers(run: tuple[Selection, content.Run], html: str) -> None:
    ranking, _ = run
    failing = [standing for standing in ranking.ranking if standing.missed]
    assert failing
    shown = Page(html)
    for standing in failing:
        (row,) = (row for row in shown.tables[0] if row[1][0].startswith(standing.name))
        found = standing.metrics["perplexity_ratio"]
        assert f"perplexity_ratio {table.estimate(found, formats.number)}, limit at most 1.01" in row[-1][0]
    assert html.count('class="number bad"') + html.count('class="number unsure"') >= len(failing)


def test_the_winner_is_explained_in_a_sentence() -> None:
    ranking, run = finished(12)
    first, second = ranking.ranking[:2]
    found, beaten = (one.metrics["served_output_tokens_per_second"] for one in (first, second))
    passing = sum(standing.rank is not None for standing in ranking.ranking)
    said = content.sentence(ranking, run.concurrency)
    assert said.startswith(
        f"**{ranking.winner} wins**: of {passing} artifacts (of 13) that pass `perplexity_ratio` at most 1.01, it has "
        f"the highest `served_output_tokens_per_second` at 4 streams, {table.estimate(found, formats.number)}, ahead "
        f"of {second.name} with {table.estimate(beaten, formats.number)}"
    )
    assert found is not None
    assert beaten is not None
    apart = (found.low or 0) > (beaten.high or 0)
    assert said.endswith("their intervals overlap.") == (not apart)


def test_no_winner_is_said_and_everything_else_is_there() -> None:
    ranking, run = finished(3, limit=0.9)
    assert ranking.winner is None
    shown = Page(page.page(ranking, run))
    assert "No artifact passes: none of 4 keeps perplexity_ratio at most 0.9." in shown.text
    assert len(shown.tables[0]) == 5
    assert "**No artifact passes**" in markdown.report(ranking, run)


def test_nothing_measured_at_all_is_a_report_too() -> None:
    ranking, run = finished(0)
    assert "No artifact passes" in markdown.report(ranking, run)
    shown = Page(page.page(ranking, run))
    assert reports.WHY in shown.text
    assert "Trade-offs" not in shown.text


def test_artifacts_that_could_not_be_served_leave_no_empty_plots() -> None:
    ranking, run = finished(2)
    latency = {name: one.model_copy(update={"served": None}) for name, one in run.latency.items()}
    html = page.page(ranking, dataclasses.replace(run, latency=latency))
    assert '<figure id="tradeoff">' in html
    assert '<figure id="throughput">' not in html


def test_predictions_that_were_far_off_are_named(run: tuple[Selection, content.Run], html: str) -> None:
    assert "Farther off: serving memory of gguf-0 (+40.0%)." in Page(html).text
    (predicted,) = (one for one in Page(html).tables if one[0][1][0] == "size, predicted")
    for row in predicted[1:]:
        size = run[1].quality[row[0][0]].bytes
        assert size is not None
        assert row[2][1] == size
        assert row[3][0].strip() == "+1.0"


def test_inputs_stand_there_by_digest(run: tuple[Selection, content.Run], html: str) -> None:
    shown = Page(html).text
    for digest in ("c" * 64, "e" * 64, "f" * 64, *(one.artifact for one in run[1].quality.values())):
        assert digest in shown
    for words in ("A processor, 2 logical CPUs, 24 GiB, NVIDIA L4", "a-tool 1.2.3", "dvc repro selection"):
        assert words in shown


def test_a_price_has_its_assumptions_beside_it() -> None:
    ranking, run = finished(2)
    priced = ranking.model_copy(
        update={
            "cost": Cost(
                price_per_hour=0.71, source="params.yaml", concurrency=4, hours_per_month=730,
                api_price_per_million_tokens=0.5,
            ),
            "ranking": tuple(
                one.model_copy(update={"metrics": one.metrics | {"price_per_million_tokens": Estimate(value=0.123)}})
                for one in ranking.ranking
            ),
        }
    )  # fmt: skip
    shown = Page(page.page(priced, run)).text
    for words in ("price of 10^6 tokens", "0.123", "0.71 USD per hour", "730 hours a month", "break-even"):
        assert words in shown
    assert "price of 10^6" not in Page(page.page(ranking, run)).text, "where none is known there is none"


def test_the_worst_gate_marks_a_figure() -> None:
    unsure, bad = (
        Gate(metric="bytes", relation="at_most", limit=1, found=Estimate(value=2), verdict=verdict)
        for verdict in ("not enough data", "fails")
    )
    assert table.noticed([]) is None
    assert table.noticed([unsure]) == "unsure"
    assert table.noticed([unsure, bad]) == "bad"


def test_fifty_artifacts_stay_small() -> None:
    assert len(page.page(*finished(50)).encode()) < LARGEST_PAGE_BYTES


def test_speeds_of_a_busy_machine_are_marked_and_the_top_says_whose_they_are_and_what_to_do() -> None:
    busy = {
        "in process": watched(QUIET),
        measurements.level(1): watched(QUIET),
        measurements.level(4): watched(BUSY, BUSY),
    }
    ranking, run = finished(3, watched={"gguf-0": busy, "gptq-1": {measurements.level(4): watched(QUIET)}})
    text, shown = markdown.report(ranking, run), Page(page.page(ranking, run))
    (warning,) = (line for line in text.splitlines()[:6] if line.startswith("**Not to be trusted"))
    assert "of gguf-0 (served: other processes ran (cc1plus) 1.00 of 2 processors)" in warning
    assert "The order by `served_output_tokens_per_second` may be another" in warning
    assert "`dvc repro --force --single-item latency@gguf-0 && dvc repro`" in warning
    assert warning.replace("**", "").replace("`", "") in shown.text
    (row,) = (row for row in shown.tables[0] if row[1][0].startswith("gguf-0"))
    marked = [title for (title, _), (cell, _) in zip(shown.tables[0][0], row, strict=True) if cell.endswith("†")]
    assert marked == ["served tok/s", "served TTFT, ms"], "and not what was measured on a quiet machine"
    assert sum(cell.endswith("†") for row in shown.tables[0] for cell, _ in row) == 2
    (beside,) = (one for one in shown.tables if "ran most" in [title for title, _ in one[0]])
    assert [[cell.strip() for cell, _ in row][:5] for row in beside[1:]] == [
        ["gguf-0", "served, 4 at a time", "1", "2.00", "1.00"],
        ["gguf-0", "served, 4 at a time", "2", "2.00", "1.00"],
    ]
    assert "3 of 4 measurements were left alone" in shown.text
    assert "This machine does not show: frequency, heat" in shown.text
    streams = [row[1][0].strip() for table_ in shown.tables for row in table_[1:] if table_[0][1][0] == "streams"]
    assert [shown for shown in streams if "†" in shown] == ["4 †"] * 2, "once in each table of served figures"


def test_a_quiet_machine_leaves_no_warning_and_many_busy_ones_are_counted() -> None:
    quiet = {"load": watched(QUIET)}
    text = markdown.report(*finished(3, watched={"gguf-0": quiet}))
    assert "Not to be trusted" not in text
    assert " †" not in text, "no figure is marked"
    assert "1 of 1 measurements were left alone" in text
    ranking, _ = finished(6, watched={one.name: {"load": watched(BUSY)} for one in finished(6)[0].ranking[:6]})
    (warning,) = disturbance.lines(ranking)
    assert "; and 2 more." in warning
    assert "The order" not in warning, "nobody chose by the time to load"
    assert "dvc repro --force --single-item latency && dvc repro." in warning
