"""Names and shapes of a model's tensors from config.json alone, where there are no weights to read headers of.

transformers creates the architecture without memory for its weights (torch's meta device), and says what its tensors
are called in files. That takes seconds, of which torch's import is most.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.checkpoints import layout, libraries
from pipeline.checkpoints.weights import Entry
from pipeline.errors import CheckpointError
from pipeline.sizing.model import Weight, joined

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def weights(config: Mapping[str, Any], source: str) -> tuple[Weight, ...]:
    """Return the tensors. CheckpointError for a family that transformers has no causal language model of."""
    text = layout.text_config(config)
    family = str(text.get("model_type"))
    dtype = str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype"))
    with _silence():
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise CheckpointError(
                f"{source}: holds no weights, and parameters of {family} cannot be counted from config.json: "
                "transformers has no causal language model of that name; name a folder or repository that has them: "
                "only their headers are read"
            )
        try:
            settings = {key: value for key, value in text.items() if key != "model_type"}
            created = _created(AutoModelForCausalLM, AutoConfig.for_model(family, **settings), dtype)
        except Exception as error:  # whatever a configuration class or a layer makes of a wrong value
            raise CheckpointError(
                f"{source}: transformers cannot make a {family} of this config.json, and parameters cannot be counted: "
                f"{error}"
            ) from error
    return joined(Entry(name, DTYPES[kind], shape, 0, 0) for name, kind, shape in created)


def _created(models: Any, config: Any, dtype: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return name, type and shape of each tensor that a file of the model has."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    kind = dtype if dtype in DTYPES else "bfloat16"
    with torch.device("meta"):
        model = models.from_config(config, dtype=getattr(torch, kind))
    once = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    stored = revert_weight_conversion(model, dict(reversed(once.values())))
    return [(name, str(one.dtype).removeprefix("torch."), tuple(one.shape)) for name, one in stored.items()]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers from remarks on a configuration; what it cannot take, it raises."""
    libraries.hush()
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
