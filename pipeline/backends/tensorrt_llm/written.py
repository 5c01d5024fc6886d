"""What TensorRT-LLM wrote down about what it made, held against what was asked for.

Its converters pass over a quantization that they cannot do: conversion ends without an error, the engine is compiled,
serves, and is simply not quantized. The configuration files tell.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.backends.tensorrt_llm import support
from pipeline.backends.tensorrt_llm.recipe import TensorRtLlmRecipe
from pipeline.errors import BuildError

QUANTIZED = "hf_quant_config.json"
"""What ModelOpt writes beside weights in Hugging Face's layout."""


def require_converted(recipe: TensorRtLlmRecipe, folder: Path) -> None:
    """Check a converted checkpoint; BuildError tells every difference."""
    config = _read(folder / "config.json")
    _require(folder, "the converted checkpoint", _converted(recipe, config, folder))


def require_engine(recipe: TensorRtLlmRecipe, folder: Path, version: str) -> None:
    """Check an engine's folder; BuildError tells every difference."""
    config = _read(folder / "config.json")
    found = [*_converted(recipe, config.get("pretrained_config", {}), None)]
    found += _differences({"version": version}, config, "")
    sizes = {
        "max_batch_size": recipe.max_batch_size,
        "max_input_len": recipe.max_input_tokens,
        "max_seq_len": recipe.max_sequence_tokens,
        "max_num_tokens": recipe.max_num_tokens,
        "gather_context_logits": True,
    }
    found += _differences(sizes, config.get("build_config", {}), "build_config.")
    found += _missing(folder, [f"rank{rank}.engine" for rank in range(recipe.tensor_parallel)])
    _require(folder, "the engine", found)


def require_quantized(recipe: TensorRtLlmRecipe, folder: Path) -> None:
    """Check a quantized checkpoint in Hugging Face's layout; BuildError tells every difference."""
    config = _read(folder / QUANTIZED).get("quantization", {})
    found = list(_differences(_algorithms(recipe), config, "quantization."))
    if not list(folder.glob("*.safetensors")):
        found.append("there are no weights (*.safetensors)")
    _require(folder, "the quantized checkpoint", found)


def _converted(recipe: TensorRtLlmRecipe, config: Mapping[str, Any], folder: Path | None) -> Iterator[str]:
    yield from _differences({"dtype": "bfloat16"}, config, "")
    yield from _differences(_algorithms(recipe), config.get("quantization") or {}, "quantization.")
    mapping = {"world_size": recipe.tensor_parallel, "tp_size": recipe.tensor_parallel}
    yield from _differences(mapping, config.get("mapping") or {}, "mapping.")
    if folder is not None:
        yield from _missing(folder, [f"rank{rank}.safetensors" for rank in range(recipe.tensor_parallel)])


def _algorithms(recipe: TensorRtLlmRecipe) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        "quant_algo": support.ALGORITHM[recipe.quantization],
        "kv_cache_quant_algo": support.KV_ALGORITHM[recipe.kv_cache],
    }
    if recipe.quantization == "int4_awq":
        wanted["group_size"] = recipe.group_size
    return wanted


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any], where: str) -> Iterator[str]:
    for name, value in wanted.items():
        if found.get(name) != value:
            yield f"{where}{name} is {json.dumps(found.get(name))}, and {json.dumps(value)} was asked for"


def _missing(folder: Path, names: list[str]) -> Iterator[str]:
    for name in names:
        if not (folder / name).is_file():
            yield f"there is no {name}"


def _require(folder: Path, what: str, differences: list[str] | Iterator[str]) -> None:
    if listed := "\n".join(f"  {one}" for one in differences):
        raise BuildError(f"TensorRT-LLM ended without an error, but {what} is not what was asked for:\n{listed}")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BuildError(f"TensorRT-LLM ended without an error, but its {path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise BuildError(f"TensorRT-LLM ended without an error, but its {path.name} is no mapping")
    return value
