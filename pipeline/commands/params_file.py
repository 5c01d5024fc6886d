"""Changes to a params.yaml, whose comments, order and style stay as they are."""

import io
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ParamsError

NULL = "tag:yaml.org,2002:null"


def read(path: Path) -> MutableMapping[str, Any]:
    """Read a file to be changed; ParamsError where it is no mapping in YAML."""
    try:
        value = _yaml().load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror}); is this a folder of `assay init`?") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not YAML: {error}") from error
    if not isinstance(value, MutableMapping):
        raise ParamsError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


def text(value: MutableMapping[str, Any]) -> str:
    """Return what `read` gave, changed since, as the text of a file."""
    out = io.StringIO()
    _yaml().dump(value, out)
    return out.getvalue()


def _yaml() -> YAML:
    """Keep lines as they are: long, quoted, and with the word null, which ruamel.yaml would leave out."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 4096, True
    yaml.representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar(NULL, "null"))
    return yaml
