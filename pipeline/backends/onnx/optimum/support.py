"""What Optimum's exporter takes, without asking it: that takes seconds, and its environment may not be there."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("architectures.json")
"""Architecture to model type, as export.py tells in the environment of requirements.txt."""

LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope", "su"})
"""RoPE whose angles follow from the sequence's length: the exporter keeps those of the short one that it traces."""


def refusal(config: Mapping[str, Any]) -> str | None:
    """Say why Optimum cannot export a model with this config.json, or None where it can."""
    (architecture, *_) = config.get("architectures") or ["none"]
    known = architectures()
    if known.get(architecture) != config.get("model_type"):
        return f"Optimum's ONNX exporter does not know {architecture}"
    if config.get("quantization_config"):
        return f"the checkpoint is already quantized ({config['quantization_config'].get('quant_method', 'unknown')})"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for one in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind = one.get("rope_type", one.get("type"))
        if kind in LENGTH_DEPENDENT_ROPE:
            return f"the angles of {kind} RoPE follow from the length of a sequence, and Optimum's graph has one set"
    return None


@functools.cache
def architectures() -> Mapping[str, str]:
    """Read the table."""
    table: dict[str, str] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table
