"""Weights against the architecture that config.json names: nothing missing, nothing unexpected, nothing misshapen.

Loaders fill what is missing with random numbers and pass over what they do not know; a log line is all they say. Here
both are errors, before any weight is read.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pipeline import architectures
from pipeline.checkpoints import architecture, layout
from pipeline.checkpoints.architecture import Differences
from pipeline.checkpoints.weights import NAMES, Entry
from pipeline.errors import CheckpointError

NAMED = 3
"""Tensors that a message names of each kind."""

WRAPPERS: Mapping[str, str] = {
    "_orig_mod.": "torch.compile puts it there: save the module that was compiled, which is its `_orig_mod`",
    "base_model.model.": "PEFT puts it there: call merge_and_unload() and save the model that it returns",
    "module.": "data-parallel training puts it there: save the `module` of the wrapped model",
}
"""Beginnings of names that a wrapper left, and how to save without it."""

QUANTIZERS: Mapping[str, str] = {
    r"\.qweight$": "GPTQ or AWQ",
    r"\.weight_packed$": "compressed-tensors",
    r"\.(absmax|quant_map|SCB)$|\.quant_state\.": "bitsandbytes",
    r"\.weight_scale(_inv)?$|\.input_scale$": "FP8",
}
"""Ends of names by which a quantizer's tensors are known."""

ADAPTER = re.compile(r"\.(lora_[AB]|base_layer)\.")


def check(config: Mapping[str, Any], names: Collection[str], entries: Sequence[Entry], source: str) -> None:
    """Refuse weights that are not exactly what the architecture needs.

    `names` are the checkpoint's files. Raises CheckpointError: for an architecture that is no causal language model,
    weights that are quantized whatever config.json says, an adapter, and tensors that differ, which it lists.
    """
    named = architectures.of(config)
    if named not in architectures.tools().transformers.values() and not named.endswith(("ForCausalLM", "LMHeadModel")):
        raise CheckpointError(
            f"{source}: {named} is no causal language model: it does not continue text, and nothing here could be "
            "measured of it; name a checkpoint that generates"
        )
    _refuse_adapter(names, source)
    _refuse_quantized(config, entries, source)
    if found := architecture.differences(config, entries, source):
        raise CheckpointError(
            f"{source}: its weights are not those of {named} with this {layout.CONFIG}: {_told(found)}. "
            f"{_hint(entries) or 'The files are incomplete, or of another model: download or save all of them again'}"
        )


def _refuse_adapter(names: Collection[str], source: str) -> None:
    beside = sorted(name for name in names if name.startswith(("adapter_config.", "adapter_model.")))
    if beside:
        raise CheckpointError(
            f"{source}: has {beside[0]} beside its weights, an adapter that would be left out; merge it "
            "(PeftModel.from_pretrained(...).merge_and_unload()) and save the result, or remove its files to build "
            "from the base model"
        )


def _refuse_quantized(config: Mapping[str, Any], entries: Sequence[Entry], source: str) -> None:
    """Refuse what is no plain float, also where config.json has no quantization_config."""
    odd = next((one for one in entries if one.name.endswith("weight") and one.dtype not in architecture.FLOATS), None)
    known = next(
        ((name, one) for pattern, name in QUANTIZERS.items() for one in entries if re.search(pattern, one.name)), None
    )
    if odd is None and known is None:
        return
    method = "MLX" if isinstance(config.get("quantization"), dict) else known[0] if known else None
    shown = known[1] if known is not None else odd
    assert shown is not None
    told = f"{f'{method}: ' if method else ''}{shown.name} is {NAMES.get(shown.dtype, shown.dtype)}"
    raise CheckpointError(
        f"{source}: is already quantized ({told}); quantizing it again would add error to error: name the checkpoint "
        "that it was made from"
    )


def _told(found: Differences) -> str:
    """List what differs, the first of each kind by name."""
    kinds = (
        ("missing", found.missing),
        ("not expected", found.unexpected),
        (
            "of another shape",
            [f"{name} {list(here)}, expected {list(wanted)}" for name, here, wanted in found.misshapen],
        ),
    )
    return "; ".join(f"{_count(listed)} {what} ({_first(listed)})" for what, listed in kinds if listed)


def _count(listed: Sequence[str]) -> str:
    return f"{len(listed)} tensor{'' if len(listed) == 1 else 's'}"


def _first(listed: Sequence[str]) -> str:
    more = f", and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


def _hint(entries: Sequence[Entry]) -> str | None:
    """Say what is known to leave such names."""
    for prefix, cause in WRAPPERS.items():
        if any(entry.name.startswith(prefix) for entry in entries):
            return f"Names begin with `{prefix}`; {cause}"
    if any(ADAPTER.search(entry.name) for entry in entries):
        return "An adapter is in them that was not merged: call merge_and_unload() and save the model that it returns"
    return None
