"""The ranking on a terminal, and how wide that is."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from pipeline import paths
from pipeline.records import FILE, Image, Selection, Verification
from pipeline.report import disturbance, table


def print_ranking() -> None:
    """Print the last run's ranking, where its report lies, and what became of the winner's image."""
    selection = Selection.load(paths.SELECTION)
    ranking = table.ranking(selection)
    grid = Table(*ranking.header, box=None, pad_edge=False)
    for column in grid.columns[2:-1]:
        column.justify = "right"
    for row in ranking.rows:
        grid.add_row(*(cell.text for cell in row), style="bold green" if row[-1].mark == "winner" else None)
    out = console()
    out.print(grid)
    for standing in selection.ranking:
        if standing.failure is not None:
            out.print(f"\n{standing.name} {standing.failure.words}", style="red", markup=False, highlight=False)
            out.print(f"to try it again: {standing.failure.again}", markup=False, highlight=False)
    out.print(f"\n{table.STAR.replace('`', '')} Report: {paths.PAGE}, {paths.REPORT}")
    for line in (*disturbance.lines(selection), *_image()):
        out.print(line, highlight=False)


def console() -> Console:
    """Return stdout; a pipe has no width of its own, and a table cut at 80 columns would lose its numbers."""
    out = Console()
    return out if out.is_terminal else Console(width=240)


def _image() -> Iterator[str]:
    """Say of the winner's image what it is and whether it was verified, or why there is none."""
    if not paths.VERIFICATION.exists():
        return
    image, verification = Image.load(paths.IMAGE / FILE), Verification.load(paths.VERIFICATION)
    if image.unavailable is not None:
        yield f"No image: {image.unavailable}"
        return
    assert image.bytes is not None
    yield f"Image: {paths.IMAGE / 'layout'}, {image.name} {image.version}, {image.bytes / 1e6:.0f} MB, {image.digest}"
    if verification.image != image.digest:
        yield "not verified yet; run `dvc repro`"
    elif verification.unavailable is not None:
        yield f"not verified: {verification.unavailable}"
    else:
        passed = sum(check.passed for check in verification.checks)
        done = "`assay release` may push it" if verification.green else "it is not to be released"
        yield f"verified: {passed} of {len(verification.checks)} checks passed; {done}"
