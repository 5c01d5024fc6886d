"""What an architecture's own class in transformers makes of config.json and of names, types and shapes of tensors.

It is created on torch's meta device, without memory for its weights, and none is read. Importing torch and the class
takes seconds, everything else a fraction of one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoints import layout
from pipeline.checkpoints.libraries import quiet
from pipeline.checkpoints.weights import NAMES, Entry
from pipeline.errors import CheckpointError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of weights that are not quantized, as safetensors calls them."""

STORED = {name: kind for kind, name in NAMES.items()} | {"int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}
"""What safetensors calls torch's types, those of counters and masks included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """What loading a checkpoint would report."""

    missing: tuple[str, ...]
    """Parameters that no tensor fills: transformers would fill them with random numbers, and say so in a log."""
    unexpected: tuple[str, ...]
    """Tensors that no parameter takes; those that the class knows as leftovers are not among them."""
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Name, stored shape, and the shape that the class wants."""

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self.missing or self.unexpected or self.misshapen)


def tensors(config: Mapping[str, Any], source: str) -> tuple[Entry, ...]:
    """Return the tensors that files of the text part of such a model hold, without a place in a file.

    CheckpointError for a model type that transformers has no causal language model of.
    """
    text = layout.text_config(config)
    dtype = str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype"))
    with quiet():
        return _as_stored(_created(text, dtype if STORED.get(dtype) in FLOATS else "bfloat16", source))


def differences(config: Mapping[str, Any], entries: Sequence[Entry], source: str) -> Differences:
    """Have transformers load tensors of these names and shapes, and return what it reports.

    Prefixes, older names, joined experts and tied heads are its own affair, as when the reference is loaded.
    """
    import torch

    with quiet():
        model = _created(config, "bfloat16", source)
        kinds = {entry.dtype: getattr(torch, NAMES.get(entry.dtype, "uint8")) for entry in entries}
        state = {one.name: torch.empty(one.shape, dtype=kinds[one.dtype], device="meta") for one in entries}
        try:
            _, found = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=state,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except RuntimeError as error:  # experts that cannot be joined; its message names none
            if by_name := _by_name(_as_stored(model), entries):
                return by_name
            raise CheckpointError(f"{source}: transformers cannot load its tensors: {error}") from error
    return Differences(
        missing=tuple(sorted(found["missing_keys"])),
        unexpected=tuple(sorted(found["unexpected_keys"])),
        misshapen=tuple(sorted((name, tuple(here), tuple(wanted)) for name, here, wanted in found["mismatched_keys"])),
    )


def _as_stored(model: Any) -> tuple[Entry, ...]:
    """Return a model's tensors as files hold them: experts apart, and a tied head once."""
    from transformers.core_model_loading import revert_weight_conversion

    once = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    stored = revert_weight_conversion(model, dict(reversed(once.values())))
    kinds = {name: STORED[str(one.dtype).removeprefix("torch.")] for name, one in stored.items()}
    return tuple(Entry(name, kinds[name], tuple(one.shape), 0, 0) for name, one in stored.items())


def _by_name(expected: Sequence[Entry], entries: Sequence[Entry]) -> Differences:
    """Compare with what files of this model hold."""
    here, wanted = ({one.name: one.shape for one in each} for each in (entries, expected))
    return Differences(
        missing=tuple(sorted(wanted.keys() - here.keys())),
        unexpected=tuple(sorted(here.keys() - wanted.keys())),
        misshapen=tuple(
            (name, here[name], wanted[name])
            for name in sorted(here.keys() & wanted.keys())
            if here[name] != wanted[name]
        ),
    )


def _created(config: Mapping[str, Any], dtype: str, source: str) -> Any:
    """Create the model without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family = str(config.get("model_type"))
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise CheckpointError(
            f"{source}: transformers has no causal language model of the model_type {family}, and without one there is "
            "nothing to compare artifacts with; name another checkpoint"
        )
    settings = {key: value for key, value in config.items() if key != "model_type"}
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                AutoConfig.for_model(family, **settings), dtype=getattr(torch, dtype)
            )
    except ImportError:  # a library is missing here: no fault of the checkpoint
        raise
    except Exception as error:  # whatever a configuration class or a layer makes of a wrong value
        raise CheckpointError(
            f"{source}: transformers cannot make a {family} of this {layout.CONFIG}: {error}"
        ) from error
