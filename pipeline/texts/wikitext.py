"""WikiText's articles, which its files hold one after the other: a line ` = Title = ` begins each.

In the raw files every line is one of the text's, and in the Hub's Parquet files every row is. Lines ` = = Section = = `
are headings within an article; that spelling, with spaces between the signs, is what WikiText is known by, since no
markup language has it. A line within an article may look like a title (` = 1 henry and capacitance C = `, a formula
broken apart), but only titles stand between blank lines.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from pipeline.texts.document import Document

TITLE = re.compile(r" ?= (?P<title>[^=\s](?:.*[^=\s])?) = ?")
SECTION = re.compile(r"^ ?(?:= ){2,}[^=\n]+(?: =){2,} ?$", re.MULTILINE)


def articles(documents: Iterable[Document], name: str) -> Iterator[Document]:
    """Yield the articles of documents that are WikiText's, and others as they are.

    Documents of a line each, as the Hub has them, are put together first; `name` stands for their file.
    """
    left = iter(documents)
    blank: list[Document] = []
    for first in left:
        if first.text.strip():
            break
        blank.append(first)
    else:
        yield from blank
        return
    if TITLE.fullmatch(first.text.strip("\n")) is None:
        for document in chain(blank, [first], left):
            yield from _cut(document)
        return
    lines = [*blank, first, *left]
    whole = Document(name=name, text="".join(f"{document.text.removesuffix(chr(10))}\n" for document in lines))
    yield from _cut(whole) if _is_wikitext(whole.text) else lines


def _is_wikitext(text: str) -> bool:
    """Whether a text begins with a title and has a section somewhere."""
    first = text.lstrip().partition("\n")[0]
    return TITLE.fullmatch(first) is not None and SECTION.search(text) is not None


def _cut(document: Document) -> Iterator[Document]:
    if not _is_wikitext(document.text):
        yield document
        return
    lines = document.text.split("\n")
    starts = [at for at in range(len(lines)) if TITLE.fullmatch(lines[at]) and _stands_alone(lines, at)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        found = TITLE.fullmatch(lines[start])
        title = found["title"] if found else ""
        yield Document(name=f"{document.name}: {title}", text="\n".join(lines[start:end]))


def _stands_alone(lines: list[str], at: int) -> bool:
    """Whether the lines before and after are blank, or there are none."""
    return not any(line.strip() for line in (*lines[max(0, at - 1) : at], *lines[at + 1 : at + 2]))
