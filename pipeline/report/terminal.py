"""The ranking on a terminal."""

from rich.console import Console
from rich.table import Table

from pipeline import paths
from pipeline.records import Selection
from pipeline.report import table


def print_ranking() -> None:
    """Print the last run's ranking, and where its report lies."""
    selection = Selection.load(paths.SELECTION)
    header, rows = table.ranking(selection)
    grid = Table(*header, box=None, pad_edge=False)
    for column in grid.columns[2:-1]:
        column.justify = "right"
    for row in rows:
        grid.add_row(*row, style="bold green" if row[-1] == "winner" else None)
    console = Console()
    # A pipe has no width of its own: a table cut at 80 columns would lose its numbers.
    wide = console if console.is_terminal else Console(width=240)
    wide.print(grid)
    wide.print(f"\n* on the Pareto front of size, perplexity and served tokens/s. Report: {paths.REPORT}")
