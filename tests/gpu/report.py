"""Rows of docs/gpu.md from what a run wrote. Nothing but Python's own library is needed."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.gpu import listing
from tests.gpu.running import DONE, FORMAT

SPEEDS = ("s", "tokens/s", "GB/s", "TFLOP/s")
"""Units of what other work on the machine bears on."""


def load(path: Path) -> dict[str, Any]:
    """Read a run's JSON. SystemExit where it is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = found["format"] == FORMAT
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"{path}: not what `python -m tests.gpu run` writes: {error!r}") from error
    if not known:
        raise SystemExit(f"{path}: format {found['format']}, expected {FORMAT}; report it by the code that wrote it")
    return found


def text(found: Mapping[str, Any]) -> str:
    """Return the page's paragraph and table."""
    about, items = found.get("about", {}), found["items"]
    versions = ", ".join(f"{name} {about[name]}" for name in ("torch", "transformers", "gptqmodel") if name in about)
    small = ", every item in a small size" if found["small"] else ""
    lines = [
        f"On {about.get('device', 'a machine that told nothing')}, driver {about.get('driver', 'unknown')}, beside "
        f"{about.get('cpu', 'an unknown CPU')}; {versions}{small}:",
        "",
        "| what | measured | GPU memory | |",
        "| :-- | --: | --: | :-- |",
    ]
    order = sorted(items, key=lambda name: listing.NAMES.index(name) if name in listing.NAMES else len(listing.NAMES))
    lines += ["| " + " | ".join(row) + " |" for name in order for row in _rows(name, items[name])]
    return "\n".join(lines) + "\n"


def _rows(name: str, item: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row for each figure, and one for an item that did not end well."""
    space = "" if name.startswith("machine/") else f"{name.partition('/')[0]}: "
    beside = f"beside {', '.join(item['beside'])}" if item.get("beside") else ""
    for figure in item["figures"]:
        taken = figure["gpu_bytes"]
        note = "; ".join(filter(None, (figure["note"], beside if figure["unit"] in SPEEDS else "")))
        yield (
            f"{space}{figure['what']}",
            f"{number(figure['value'])} {figure['unit']}".rstrip(),
            "" if taken is None else f"{taken / 2**30:.2f} GiB",
            _cell(note),
        )
    if item["state"] != DONE:
        said = item["said"].strip().splitlines()
        yield name, item["state"], "", _cell(said[-1] if said else "")


def number(value: float) -> str:
    """Write a figure with four digits that count; whole thousands with commas, a ratio near 1 by what it differs."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.5f}" if 0.9 < value < 1.1 else f"{value:.4g}"


def _cell(words: str) -> str:
    return words.replace("|", "\\|")
