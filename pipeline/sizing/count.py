"""A model's tensors from config.json alone, where there are no weights to read headers of."""

from collections.abc import Mapping
from typing import Any

from pipeline.checkpoints import architecture
from pipeline.sizing.model import Weight, joined


def weights(config: Mapping[str, Any], source: str) -> tuple[Weight, ...]:
    """Return the tensors. CheckpointError for a family that transformers has no causal language model of."""
    return joined(architecture.tensors(config, source))
