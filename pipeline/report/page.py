"""report/index.html: the content as a browser shows it, in one file that asks the network for nothing.

Plots are drawn by Vega-Lite, which vl-convert brings as one script. The policy in the page's head lets nothing run but
this script, tables.js and page.js, by their digests, and nothing be loaded at all.
"""

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline import metrics
from pipeline.records import Selection
from pipeline.report import content, disturbance, plots, table
from pipeline.report.blocks import Block, Cell, Code, Figure, Items, Log, Prose, Section, Table

HERE = Path(__file__).parent

VEGA_LITE = "5.21"
"""The version of the bundle: the major version of the templates, which DVC's own plots load too."""

SYMBOLS = {"winner": "★", "good": "✓", "unsure": "?", "bad": "✗"}

RATES = {
    "output_tokens_per_second": "output tokens/s",
    "requests_per_second": "requests/s",
    "goodput_requests_per_second": "goodput, requests/s",
}
WAITS = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "end_to_end_ms": "end-to-end"}


def page(selection: Selection, run: content.Run) -> str:
    """Return the whole page."""
    lead = f'<p id="winner">{_markup(content.sentence(selection, run.concurrency))}</p>\n{_headline(selection)}'
    if (warning := disturbance.warning(selection)) is not None:
        lead += f'\n<p id="warning" role="note">{_markup(warning)}</p>'
    title, sections, data = run.checkpoint.source, content.sections(selection, run), _data(selection, run)
    return _document(title, f"{title}: artifacts compared", lead, sections, data)


def tables(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return a page of words and tables, as a comparison is, without what draws plots."""
    return _document(title, title, f"<p>{_markup(lead)}</p>", sections, None)


def _document(title: str, tab: str, lead: str, sections: Sequence[Section], data: Mapping[str, Any] | None) -> str:
    """Return a page; `data` is for its plots, if it has any."""
    links = "".join(f'<li><a href="#{_anchor(one.title)}">{escape(one.title)}</a></li>' for one in sections)
    body = "\n".join(_section(one, data or {}) for one in sections)
    style = (HERE / "page.css").read_text(encoding="utf-8")
    scripts = [(HERE / "tables.js").read_text(encoding="utf-8")]
    embedded = ""
    if data is not None:
        embedded = f'<script type="application/json" id="data">{_embedded(data)}</script>\n'
        scripts += [_library(), (HERE / "page.js").read_text(encoding="utf-8")]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_digest, scripts))}; style-src {_digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    running = "\n".join(f"<script>{script}</script>" for script in scripts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(tab)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{lead}
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{body}
</main>
{embedded}{running}
</body>
</html>
"""


@functools.cache
def _library() -> str:
    """Return Vega, Vega-Lite and their embedding as one script that sets window.vegaEmbed."""
    import vl_convert  # here, because it brings a JavaScript engine, and only this page needs one

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    assert not re.search("</script|<!--", bundle), "would end the element that holds it"
    return str(bundle)


def _digest(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _data(selection: Selection, run: content.Run) -> dict[str, Any]:
    """Return what page.js draws."""
    measured = {one.name: run.latency[one.name].served for one in selection.ranking if not one.unavailable}
    return {
        "templates": plots.templates(),
        "axes": [
            {
                "field": axis.field,
                "title": axis.title,
                "better": metrics.named(name).better,
                "logarithmic": axis.logarithmic,
            }
            for name, axis in plots.axes(selection).items()
        ],
        "artifacts": plots.artifacts(selection, {name: str(one["backend"]) for name, one in run.recipes.items()}),
        "levels": plots.levels(measured),
        "waits": plots.waits(measured),
        "concurrency": run.concurrency,
    }


def _embedded(data: Mapping[str, Any]) -> str:
    """Write JSON that cannot end the element that holds it."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _headline(selection: Selection) -> str:
    """Show the winner's figures at a glance."""
    if selection.winner is None:
        return ""
    figures = "".join(
        f"<div><dt>{escape(metric.title)}</dt><dd>{_figure(cell)}</dd></div>"
        for metric in map(metrics.named, table.RANKING)
        if (cell := table.cell(metric, selection.ranking[0])).value is not None
    )
    return f'<dl id="headline" aria-label="Figures of {escape(selection.winner)}">{figures}</dl>'


def _section(section: Section, data: Mapping[str, Any]) -> str:
    blocks = "\n".join(_block(block, data) for block in section.blocks)
    anchor = _anchor(section.title)
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{escape(section.title)}</h2>'
        f"\n{blocks}\n</section>"
    )


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())


def _block(block: Block, data: Mapping[str, Any]) -> str:
    match block:
        case Table():
            return _table(block)
        case Prose(text=text):
            return f"<p>{_markup(text)}</p>"
        case Items(items=items):
            return "<ul>" + "".join(f"<li>{_markup(item)}</li>" for item in items) + "</ul>"
        case Code(text=text):
            return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'
        case Log(title=title, lines=lines):
            text = escape("\n".join(lines))
            return f'<details><summary>{escape(title)}</summary><pre tabindex="0"><code>{text}</code></pre></details>'
        case Figure(plot=plot):
            return _plot(plot, data)


def _table(shown: Table) -> str:
    named = next((column for column, title in enumerate(shown.header) if title != "rank"), 0)
    numeric = [shown.numeric(column) for column in range(len(shown.header))]
    header = "".join(
        f'<th scope="col"{" class=number" if figures else ""}><button type="button">{escape(title)}</button></th>'
        for title, figures in zip(shown.header, numeric, strict=True)
    )
    rows = []
    for row in shown.rows:
        marks = {cell.mark for cell in row}
        cells = "".join(_cell(cell, head=column == named, number=numeric[column]) for column, cell in enumerate(row))
        rows.append(f"<tr{' class=winner' if 'winner' in marks else ''}>{cells}</tr>")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(shown.about)}"><table>'
        f"<caption>{escape(shown.about)}</caption><thead><tr>{header}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(cell: Cell, *, head: bool, number: bool) -> str:
    tag, scope = ("th", ' scope="row"') if head else ("td", "")
    kinds = " ".join(filter(None, ("number" if number else "", cell.mark or "")))
    shaped = f' class="{kinds}"' if kinds else ""
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    return f"<{tag}{scope}{shaped}{value}>{_figure(cell)}</{tag}>"


def _figure(cell: Cell) -> str:
    """Set an interval apart from its value, and put a mark's symbol before the text that says the same."""
    symbol = f'<span class="mark" aria-hidden="true">{SYMBOLS[cell.mark]}</span> ' if cell.mark else ""
    value, bracket, interval = cell.text.partition(" [")
    if cell.value is None or not bracket:
        return symbol + _markup(cell.text)
    return f'{symbol}{escape(value)} <span class="interval">[{escape(interval)}</span>'


def _markup(text: str) -> str:
    """Turn **strong** and `code` into elements."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def _plot(name: str, data: Mapping[str, Any]) -> str:
    """Return a figure that page.js draws into, with the controls of its axes."""
    axes = {axis["field"]: axis["title"] for axis in data["axes"]}
    streams = {str(count): plots.streams(count) for count in sorted({row["streams"] for row in data["waits"]})}
    chosen = str(data["concurrency"])
    fields = list(axes)
    match name:
        case "tradeoff":
            down = "kld_mean_nats" if "kld_mean_nats" in axes else fields[-1]
            controls = _select("tradeoff-x", "Across", axes, fields[0]) + _select("tradeoff-y", "Up", axes, down)
            caption = (
                "Each artifact, with its interval where it has one. Shapes tell the backend; a hollow shape does not "
                "pass a gate. The dotted line joins those that no other beats on both axes. A label "
                "without room is left out; the ranking table has the same figures."
            )
        case "throughput":
            controls = _select("throughput-x", "Show", RATES, next(iter(RATES)))
            caption = "A point for each number of streams, which stands above it; the bar is its interval."
        case _:
            controls = _select("waits-x", "Show", WAITS, next(iter(WAITS))) + _select(
                "waits-streams", "at", streams, chosen
            )
            caption = (
                f"A stroke for each raw value (at most {plots.MOST_POINTS} of an artifact, evenly spaced in rank); the "
                "diamond is the median of those shown. Logarithmic where no value is zero."
            )
    return (
        f'<figure id="{name}"><div class="controls" hidden>{controls}</div><div class="plot" role="img"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _select(identity: str, label: str, options: Mapping[str, str], chosen: str) -> str:
    listed = "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(title)}</option>'
        for value, title in options.items()
    )
    return f'<label for="{identity}">{escape(label)} <select id="{identity}">{listed}</select></label>'
