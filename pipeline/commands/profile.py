"""`assay profile NAME`: merge profiles/NAME.yaml into params.yaml, which every command and DVC read."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from pipeline import outputs, params
from pipeline.commands import params_file, project
from pipeline.errors import ParamsError

PROFILES = Path("profiles")


def profile(name: str) -> list[str]:
    """Add a profile's keys to params.yaml, whose comments and order stay; return the keys that changed, dotted.

    A project may have profiles of its own beside Assay's, in a folder of that name. Mappings are merged, anything else
    is replaced. The result is checked before anything is written. ParamsError for a profile that does not exist, or
    does not fit.
    """
    known = {path.stem: path for folder in (project.shared() / PROFILES, PROFILES) for path in folder.glob("*.yaml")}
    if name not in known:
        raise ParamsError(f"{name!r} is no profile; there is {', '.join(sorted(known)) or 'none'}")
    merged, added = (params_file.read(path) for path in (params.PATH, known[name]))
    changed = _merge(merged, added)
    text = params_file.text(merged)
    params.check(text, f"{params.PATH} with {known[name]}")
    outputs.replace(params.PATH, text)
    return changed


def _merge(into: MutableMapping[str, Any], added: MutableMapping[str, Any], prefix: str = "") -> list[str]:
    changed = []
    for key, value in added.items():
        there = into.get(key)
        if isinstance(value, MutableMapping) and isinstance(there, MutableMapping) and not _is_recipe(value):
            changed += _merge(there, value, f"{prefix}{key}.")
        elif key not in into or there != value:
            into[key] = value
            changed.append(f"{prefix}{key}")
    return changed


def _is_recipe(value: MutableMapping[str, Any]) -> bool:
    """A recipe is replaced whole: keys of another backend's would stay."""
    return "backend" in value
