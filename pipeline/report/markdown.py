"""report/report.md: the content as a pull request shows it."""

import re
from collections.abc import Sequence
from html import escape

from pipeline.records import Selection
from pipeline.report import content, disturbance, table
from pipeline.report.blocks import Block, Code, Figure, Items, Log, Prose, Section, Table


def report(selection: Selection, run: content.Run) -> str:
    """Return the whole report."""
    lead = "\n\n".join(filter(None, (content.sentence(selection, run.concurrency), disturbance.warning(selection))))
    return document(run.checkpoint.source, lead, content.sections(selection, run))


def document(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return sections under a title, after a sentence that says it all."""
    parts = [f"# {_plain(title)}", _plain(lead)]
    for section in sections:
        if shown := [text for block in section.blocks if (text := _block(block)) is not None]:
            parts += [f"## {section.title}", *shown]
    return "\n\n".join(parts) + "\n"


def ranking(selection: Selection) -> str:
    """Return the ranking alone."""
    return rendered(table.ranking(selection))


def rendered(shown: Table) -> str:
    """Return a table, figures to the right."""
    numeric = [shown.numeric(column) for column in range(len(shown.header))]
    alignment = ["--:" if figures else ":--" for figures in numeric]
    rows = [[_plain(cell.text).replace("|", "\\|").replace("\n", " ") for cell in row] for row in shown.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (shown.header, alignment, *rows))


def _plain(text: str) -> str:
    """Keep what stands in a name or a message from being taken for HTML; between backticks nothing is."""
    return re.sub(r"`[^`]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], text)


def _block(block: Block) -> str | None:
    match block:
        case Table():
            return rendered(block)
        case Prose(text=text):
            return _plain(text)
        case Items(items=items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Code(text=text):
            return f"```sh\n{text}\n```"
        case Log(title=title, lines=lines):
            text = escape("\n".join(lines), quote=False)
            return f"<details><summary>{escape(title)}</summary>\n\n<pre>{text}</pre>\n\n</details>"
        case Figure():
            return None  # its tables are there
