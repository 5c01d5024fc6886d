"""Writes every form of the report at once, so that none tells of another run."""

from pathlib import Path

from pipeline import paths
from pipeline.records import Selection
from pipeline.report import content, markdown, page, plots


def write(selection: Selection, run: content.Run) -> None:
    """Write report/report.md, report/index.html and report/plots/."""
    backends = {name: str(recipe["backend"]) for name, recipe in run.recipes.items()}
    measured = {one.name: run.latency[one.name].served for one in selection.ranking if not one.unavailable}
    plots.write(paths.PLOTS, selection, backends, measured)
    replace(paths.REPORT, markdown.report(selection, run))
    replace(paths.PAGE, page.page(selection, run))


def replace(path: Path, text: str) -> None:
    """Put a new file in the place of an old one, which may be a link into DVC's cache."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
