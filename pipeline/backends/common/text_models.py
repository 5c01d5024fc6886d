"""What converters of text models refuse by config.json alone."""

from collections.abc import Mapping
from typing import Any

from pipeline import architectures


def refusal(config: Mapping[str, Any]) -> str | None:
    """Say why a model is no causal language model of text alone, or None where it is one."""
    named = architectures.of(config)
    for part in ("vision_config", "audio_config"):
        if config.get(part) is not None:
            return f"{named} has a {part}; only text models are converted"
    if not named.endswith(("ForCausalLM", "LMHeadModel")):
        return f"{named} is not a causal language model"
    return None
