"""What a report is made of. One content, and two forms of it: markdown.py for a pull request, page.py for a browser.

Texts have the little markup that both forms know: **strong**, and `code` between backticks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Mark = Literal["winner", "good", "unsure", "bad"]
"""What a cell is to be noticed for. Its text says the same: neither colour nor symbol is all there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A figure or a word as people read it."""

    text: str
    value: float | None = None
    """What it is sorted by; None for words, and for a figure that there is none of."""
    mark: Mark | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows that can be sorted by any column; the first column but a rank names the row."""

    about: str
    """What it shows, for those who cannot see where it stands."""
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def numeric(self, column: int) -> bool:
        """Tell whether a column holds figures."""
        return any(row[column].value is not None for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prose:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Lines to type."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot of plots.py. A browser draws it; the tables of its section are the same in words."""

    plot: Literal["tradeoff", "throughput", "waits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Lines that a program printed, folded away under a title."""

    title: str
    lines: tuple[str, ...]


Block = Table | Prose | Items | Code | Figure | Log


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Blocks under a title."""

    title: str
    blocks: tuple[Block, ...]


def words(*texts: str) -> tuple[Cell, ...]:
    """Return cells that hold no figures."""
    return tuple(Cell(text=text) for text in texts)


def table(about: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """Return a table; rows as long as its header."""
    assert all(len(row) == len(header) for row in rows), about
    return Table(about=about, header=tuple(header), rows=tuple(tuple(row) for row in rows))
