"""What Optimum's exporter takes, without asking it: that takes seconds, and its environment may not be there."""

from collections.abc import Mapping
from typing import Any

from pipeline import architectures

LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope", "su"})
"""RoPE whose angles follow from the sequence's length: the exporter keeps those of the short one that it traces."""


def refusal(config: Mapping[str, Any]) -> str | None:
    """Say why Optimum cannot export a model with this config.json, or None where it can."""
    architecture = architectures.of(config)
    if architectures.tools().optimum.get(architecture) != config.get("model_type"):
        return f"Optimum's ONNX exporter does not know {architecture}"
    if config.get("quantization_config"):
        return f"the checkpoint is already quantized ({config['quantization_config'].get('quant_method', 'unknown')})"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for one in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind = one.get("rope_type", one.get("type"))
        if kind in LENGTH_DEPENDENT_ROPE:
            return f"the angles of {kind} RoPE follow from the length of a sequence, and Optimum's graph has one set"
    return None
