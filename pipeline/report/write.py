"""Writes every form of the report at once, so that none tells of another run."""

from pipeline import outputs, paths
from pipeline.records import Selection
from pipeline.report import content, markdown, page, plots


def write(selection: Selection, run: content.Run) -> None:
    """Write report/report.md, report/index.html and report/plots/."""
    backends = {name: str(recipe["backend"]) for name, recipe in run.recipes.items()}
    measured = {one.name: run.latency[one.name].served for one in selection.ranking if not one.unavailable}
    plots.write(paths.PLOTS, selection, backends, measured)
    outputs.replace(paths.REPORT, markdown.report(selection, run))
    outputs.replace(paths.PAGE, page.page(selection, run))
