"""The code blocks of README and docs, and what the comment before each says about them.

    <!-- run -->              its commands run in the small finished repository of test_documented.py
    <!-- run: extended -->    they run in the copy that docs/extending.md changes
    <!-- edit -->             they make such a change
    <!-- file: PATH -->       the block is that file
    <!-- tested: PATH -->     this test runs the same commands on the real flow
    <!-- needs: WHAT -->      the machine that tests lacks this

Blocks in yaml are parts of params.yaml and are checked as such. Others (console output, JSON) are only read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int
    language: str
    text: str
    kind: str | None
    """What the comment before it begins with."""
    value: str
    """What stands behind the colon there."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, continued ones joined, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.partition("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def blocks(page: Path) -> Iterator[Block]:
    """Yield a page's blocks in order."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        kind, _, value = (found["mark"] or "").partition(":")
        line = text[: found.start("language")].count("\n") + 1
        yield Block(page, line, found["language"], found["text"], kind.strip() or None, value.strip())


ALL = [block for page in PAGES for block in blocks(page)]
