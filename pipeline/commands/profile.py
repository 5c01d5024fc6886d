"""`assay profile NAME`: merge profiles/NAME.yaml into params.yaml, which every command and DVC read."""

import io
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import params
from pipeline.errors import ParamsError

PROFILES = Path("profiles")

NULL = "tag:yaml.org,2002:null"


def profile(name: str) -> list[str]:
    """Add a profile's keys to params.yaml, whose comments and order stay; return the keys that changed, dotted.

    Mappings are merged, anything else is replaced. The result is checked before anything is written. ParamsError for
    a profile that does not exist, or does not fit.
    """
    known = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if name not in known:
        raise ParamsError(f"{name!r} is no profile; there is {', '.join(known) or 'none'} in {PROFILES}/")
    yaml = _round_trip()
    source = PROFILES / f"{name}.yaml"
    merged, added = (_read(yaml, path) for path in (params.PATH, source))
    changed = _merge(merged, added)
    text = io.StringIO()
    yaml.dump(merged, text)
    params.check(text.getvalue(), f"{params.PATH} with {source}")
    partial = params.PATH.with_name(f".{params.PATH.name}.partial")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.replace(params.PATH)
    return changed


def _round_trip() -> YAML:
    """Keep lines as they are: long, quoted, and with the word null, which ruamel.yaml would leave out."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 4096, True
    yaml.representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar(NULL, "null"))
    return yaml


def _read(yaml: YAML, path: Path) -> MutableMapping[str, Any]:
    try:
        value = yaml.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror}); run from the repository's root") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not YAML: {error}") from error
    if not isinstance(value, MutableMapping):
        raise ParamsError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


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
