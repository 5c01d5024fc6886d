"""What config.json must say, before a byte of the weights is looked at or downloaded."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.checkpoints import layout
from pipeline.errors import CheckpointError

Refusals = Callable[[Mapping[str, Any]], dict[str, str | None]]
"""From config.json to each wanted artifact's reason against it, None where it can be made."""

CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)


def check(folder: Path, source: str, refusals: Refusals) -> dict[str, Any]:
    """Return config.json; refuse remote code, quantized weights and architectures that no wanted artifact can take."""
    config = layout.read_json(folder / layout.CONFIG, source)
    for name in (layout.CONFIG, "tokenizer_config.json"):
        if (folder / name).is_file():
            _refuse_code(layout.read_json(folder / name, source), name, source)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise CheckpointError(
            f"{source}: {layout.CONFIG} names no architectures (found {architectures!r}); expected a list such as "
            '["LlamaForCausalLM"]'
        )
    if is_quantized(config):
        raise CheckpointError(
            f"{source}: is already quantized ({layout.CONFIG} has quantization_config); quantizing it again would add "
            "error to error: name the checkpoint it was made from"
        )
    vocabulary_size(config, source)
    reasons = refusals(config)
    if reasons and all(reasons.values()):
        listed = "\n".join(f"  {name}: {reason}" for name, reason in reasons.items())
        raise CheckpointError(
            f"{source}: no artifact in params.yaml can be made from {architectures[0]}; name another checkpoint, or "
            f"add an artifact that takes it\n{listed}"
        )
    return config


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Tell whether config.json says that the weights are quantized."""
    return any(part.get("quantization_config") is not None for part in (config, layout.text_config(config)))


def vocabulary_size(config: Mapping[str, Any], source: str) -> int:
    """Return the number of rows that embedding and head must have."""
    found = layout.text_config(config).get("vocab_size", config.get("vocab_size"))
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise CheckpointError(f"{source}: {layout.CONFIG}: vocab_size is {found!r}, expected a positive number")
    return found


def stated_context_tokens(config: Mapping[str, Any]) -> int | None:
    """Return the longest sequence that the model was made for, where config.json says so."""
    stated = map(layout.text_config(config).get, CONTEXT_KEYS)
    return next((tokens for tokens in stated if isinstance(tokens, int) and tokens > 0), None)


def context_tokens(config: Mapping[str, Any], folder: Path, source: str) -> int:
    """Return the longest sequence that the model was made for.

    Where config.json is silent the architecture's own default holds, which transformers knows.
    """
    if (stated := stated_context_tokens(config)) is not None:
        return stated
    from transformers import AutoConfig

    try:
        loaded = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{source}: {layout.CONFIG}: transformers cannot read it: {error}") from error
    for key in CONTEXT_KEYS:
        found = getattr(loaded, key, None)
        if isinstance(found, int) and found > 0:
            return found
    raise CheckpointError(f"{source}: {layout.CONFIG} names no context length; expected max_position_embeddings")


def eos_ids(config: Mapping[str, Any], folder: Path, source: str) -> tuple[int, ...]:
    """Return the tokens that end an answer: generation_config.json's and config.json's; the tokenizer's is one as well.

    The files of fine-tuned models often differ: one has the base model's end, another that of a turn.
    """
    path = folder / "generation_config.json"
    generation = layout.read_json(path, source) if path.is_file() else {}
    stated = (part.get("eos_token_id") for part in (generation, config, layout.text_config(config)))
    found = ([ids] if isinstance(ids, int) else ids or () for ids in stated)
    return tuple(dict.fromkeys(itertools.chain.from_iterable(found)))


def _refuse_code(value: Mapping[str, Any], name: str, source: str) -> None:
    if any(part.get("auto_map") is not None for part in (value, layout.text_config(value))):
        raise CheckpointError(
            f"{source}: {name} has auto_map: it wants Python code of its own to be run, which is never done; if "
            "transformers itself knows this model_type, remove auto_map in a copy of the folder and name that copy"
        )
