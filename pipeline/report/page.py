"""report/index.html: the content as a browser shows it, in one file that asks the network for nothing.

page.jinja is its HTML. Plots are drawn by Vega-Lite, which vl-convert brings as one script. The policy in the page's
head lets nothing run but this script, tables.js and page.js, by their digests, and nothing be loaded at all.
"""

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from pipeline import metrics
from pipeline.records import Selection
from pipeline.report import content, disturbance, plots, table
from pipeline.report.blocks import Cell, Section

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


CAPTIONS = {
    "tradeoff": "Each artifact, with its interval where it has one. The shape tells the backend; an artifact with a "
    "hollow shape does not pass a gate. The dotted line joins the artifacts that no other beats on both axes. A label "
    "that does not fit is not shown; the ranking table has the same figures.",
    "throughput": "A point for each number of streams, which stands above it; the bar is its interval.",
    "waits": f"A stroke for each raw value (at most {plots.MOST_POINTS} of an artifact, evenly spaced in rank); the "
    "diamond is the median of those shown. Logarithmic where no value is zero.",
}


def page(selection: Selection, run: content.Run) -> str:
    """Return the whole page."""
    title, data = run.checkpoint.source, _data(selection, run)
    return _document(
        title,
        f"{title}: artifacts compared",
        content.sentence(selection, run.concurrency),
        content.sections(selection, run),
        scripts=[_library(), _file("page.js")],
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        plots=_plots(data),
        winner=selection.winner,
        headline=_headline(selection),
        warning=disturbance.warning(selection),
    )


def tables(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return a page of words and tables, as a comparison is, without what draws plots."""
    return _document(title, title, lead, sections)


def _document(
    title: str, tab: str, lead: str, sections: Sequence[Section], scripts: Sequence[str] = (), **more: Any
) -> str:
    """Return a page; `more` is what only that of a report has."""
    style, running = _file("page.css"), [_file("tables.js"), *scripts]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_digest, running))}; style-src {_digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return _template().render(
        title=title, tab=tab, lead=lead, sections=sections, scripts=running, style=style, policy=policy, **more
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["symbols"] = SYMBOLS
    environment.filters |= {"markup": _markup, "anchor": _anchor, "kind": lambda block: type(block).__name__}
    return environment.get_template("page.jinja")


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


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


def _headline(selection: Selection) -> list[tuple[str, Cell]]:
    """Return the winner's figures, which are shown at a glance."""
    if selection.winner is None:
        return []
    shown = ((metric.title, table.cell(metric, selection.ranking[0])) for metric in map(metrics.named, table.RANKING))
    return [(title, cell) for title, cell in shown if cell.value is not None]


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())


def _markup(text: str) -> Markup:
    """Turn **strong** and `code` into elements, and escape all else."""
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text)))
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", escaped))


def _plots(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what stands beside each figure that page.js draws: its caption, and the controls of its axes."""
    axes = {axis["field"]: axis["title"] for axis in data["axes"]}
    if not axes:
        return {}  # nothing was measured, and no section has a figure
    streams = {str(count): plots.streams(count) for count in sorted({row["streams"] for row in data["waits"]})}
    across, down = next(iter(axes)), "kld_mean_nats" if "kld_mean_nats" in axes else list(axes)[-1]
    controls = {
        "tradeoff": [_control("tradeoff-x", "Across", axes, across), _control("tradeoff-y", "Up", axes, down)],
        "throughput": [_control("throughput-x", "Show", RATES, next(iter(RATES)))],
        "waits": [
            _control("waits-x", "Show", WAITS, next(iter(WAITS))),
            _control("waits-streams", "at", streams, str(data["concurrency"])),
        ],
    }
    return {name: {"caption": caption, "controls": controls[name]} for name, caption in CAPTIONS.items()}


def _control(identity: str, label: str, options: Mapping[str, str], chosen: str) -> dict[str, Any]:
    return {"id": identity, "label": label, "options": options, "chosen": chosen}
