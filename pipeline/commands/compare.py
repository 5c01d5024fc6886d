"""`assay compare`: what changed between two runs, and whether that is for the worse."""

from pathlib import Path
from typing import Literal

from pipeline.comparison import compare as comparing
from pipeline.comparison import words
from pipeline.comparison.compare import Comparison
from pipeline.comparison.judge import Verdict
from pipeline.comparison.sides import WORKSPACE, side
from pipeline.errors import ComparisonError, StorageError
from pipeline.report import markdown, page

FailOn = Literal["worse", "unclear"]


def compare(before: str = "HEAD", after: str = WORKSPACE, *, everything: bool = False) -> Comparison:
    """Compare two runs, each a git revision, a DVC experiment or a folder."""
    return comparing.compare(side(before), side(after), everything=everything)


def text(comparison: Comparison) -> str:
    """Return a comparison as Markdown."""
    return markdown.document(words.title(comparison), words.sentence(comparison), words.sections(comparison))


def write_page(comparison: Comparison, path: Path) -> None:
    """Write a comparison as one file for a browser."""
    text = page.tables(words.title(comparison), words.sentence(comparison), words.sections(comparison))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from error


def require(comparison: Comparison, fail_on: FailOn) -> None:
    """Raise ComparisonError where something got worse, or, when asked, where the figures cannot tell."""
    verdicts: tuple[Verdict, ...] = ("worse",) if fail_on == "worse" else ("worse", "unclear")
    counts = [f"{count} {verdict}" for verdict in verdicts if (count := comparison.count(verdict))]
    if counts:
        raise ComparisonError(f"{comparison.before} to {comparison.after}: {' and '.join(counts)}")
