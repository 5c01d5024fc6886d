"""The source as the transformers of TensorRT-LLM 1.2 reads it, which is a 4.57.

transformers 5 writes some of config.json under other names. The older one knows none of these, and takes its defaults
instead: a model whose RoPE was made for a million tokens would be converted without a word, and lose its way.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
OTHERS = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
"""The model's description and its tokenizer."""


def prepare(source: Path, folder: Path) -> None:
    """Fill `folder` with links to the source's files and a config.json of its own."""
    folder.mkdir()
    for pattern in (*WEIGHTS, *OTHERS):
        for file in source.glob(pattern):
            link = folder / file.name
            if file.name != "config.json" and not link.is_symlink():
                link.symlink_to(file.resolve())
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(translated(config), indent=2) + "\n", encoding="utf-8")


def folders(prepared: Path) -> list[Path]:
    """List the folders that the links lead to."""
    return sorted({file.resolve().parent for file in prepared.iterdir()} - {prepared.resolve()})


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the older names of a config.json; those that are there already stay."""
    older: dict[str, Any] = {}
    if "dtype" in config:
        older["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters") or {}
    if "full_attention" in rope:  # one set for each type of layer, as in Gemma 3
        older |= _rope(rope["full_attention"])
        if "rope_theta" in rope.get("sliding_attention", {}):
            older["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    else:
        older |= _rope(rope)
    return older | dict(config)


def _rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    apart = ("rope_theta", "partial_rotary_factor")
    found = {name: parameters[name] for name in apart if name in parameters}
    if parameters.get("rope_type", "default") != "default":
        found["rope_scaling"] = {name: value for name, value in parameters.items() if name not in apart}
    return found
