"""The key-value cache from config.json: what each layer keeps of a sequence.

Full attention keeps keys and values of every token, for each key-value head (MHA: as many as heads; GQA: fewer; MQA:
one). A sliding window keeps the last ones. Multi-head latent attention keeps one compressed vector and one rotary key a
token (DeepSeek-V2, arXiv:2405.04434, section 2.1). Recurrent layers keep a state of fixed size. Layers that share
another's cache keep nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoints import layout

SLIDING = frozenset({"sliding_attention", "chunked_attention", "local", "sliding"})
RECURRENT = frozenset({"mamba", "mamba2", "linear_attention", "recurrent", "conv", "short_conv"})
NEITHER = frozenset({"mlp", "moe"})
"""Names of layers in `layer_types` and its older relatives; every other one is full attention."""

NEMOTRON = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""Letters of hybrid_override_pattern."""

EVERY_OTHER = frozenset({"gemma2", "gpt_oss", "cohere2_every_other"})
"""Families without `layer_types` in older files, in which every other layer, the first included, has the window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one layer keeps of one sequence, in elements."""

    per_token: int = 0
    """Keys and values, or the latent vector."""
    expanded_per_token: int = 0
    """The same where a runtime keeps latent attention's keys and values written out; else equal."""
    window: int | None = None
    """Tokens beyond which nothing is kept; None for all."""
    state: int = 0
    """Elements of fixed size, whatever the length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How a runtime keeps it."""

    bits: int = 16
    """Bits of one element: 32, 16, or 8 with a quantized cache."""
    windows: bool = True
    """It keeps no more than a sliding window of layers that have one."""
    latent: bool = True
    """It keeps latent attention's compressed form."""
    whole: bool = False
    """All room is taken at the start, rather than as sequences grow."""


def layers(config: Mapping[str, Any]) -> tuple[Layer, ...]:
    """Return what each layer keeps. Empty where config.json names no layers."""
    text = layout.text_config(config)
    kinds = _kinds(text)
    shared = int(text.get("num_kv_shared_layers") or 0)
    share = int(text.get("cla_share_factor") or 1) if text.get("use_cla") else 1
    found = []
    for number, kind in enumerate(kinds):
        if number >= len(kinds) - shared or number % share:
            found.append(Layer())  # reads the cache of a layer before it
        elif kind == "both":
            one = _attention(text, number, "attention")
            found.append(Layer(per_token=one.per_token, expanded_per_token=one.per_token, state=_state(text)))
        elif kind in RECURRENT:
            found.append(Layer(state=_state(text)))
        else:
            found.append(Layer() if kind in NEITHER else _attention(text, number, kind))
    return tuple(found)


def sequence_bytes(config: Mapping[str, Any], tokens: int, use: Use) -> int:
    """Return what one sequence of so many tokens takes. State is kept in float32 by every runtime known here."""
    total = 0
    for layer in layers(config):
        kept = min(tokens, layer.window) if use.windows and layer.window else tokens
        total += kept * (layer.per_token if use.latent else layer.expanded_per_token) * use.bits // 8 + 4 * layer.state
    return total


def token_bytes(config: Mapping[str, Any], use: Use) -> int:
    """Return what each further token takes within the windows: the figure that model cards give."""
    return sum(one.per_token if use.latent else one.expanded_per_token for one in layers(config)) * use.bits // 8


def _kinds(text: Mapping[str, Any]) -> list[str]:
    """Name each layer's kind, whichever way the family says so."""
    count = next((int(text[key]) for key in ("num_hidden_layers", "n_layer", "num_layers") if text.get(key)), 0)
    family = str(text.get("model_type", ""))
    if listed := text.get("layer_types") or text.get("layers_block_type"):
        return [{"hybrid": "both"}.get(kind, kind) for kind in listed][:count]
    if pattern := text.get("hybrid_override_pattern"):
        return [NEMOTRON.get(letter, "attention") for letter in pattern][:count]
    if (only := text.get("attn_layer_indices")) is not None:  # Bamba
        return ["attention" if number in only else "mamba" for number in range(count)]
    if period := text.get("attn_layer_period"):  # Jamba
        return ["attention" if n % period == text.get("attn_layer_offset", 0) else "mamba" for n in range(count)]
    if family in ("mamba", "mamba2", "falcon_mamba"):
        return ["mamba"] * count
    if family == "falcon_h1":
        return ["both"] * count
    if not _window(text):
        return ["full_attention"] * count
    if period := text.get("sliding_window_pattern"):  # Gemma 3, Cohere 2: the last of each period sees everything
        return ["sliding" if (number + 1) % period else "full_attention" for number in range(count)]
    if family in EVERY_OTHER:
        return ["full_attention" if number % 2 else "sliding" for number in range(count)]
    if family.startswith(("qwen2", "qwen3")):  # layers from max_window_layers on, and only if asked for
        first = int(text.get("max_window_layers", count)) if text.get("use_sliding_window") else count
        return ["sliding" if number >= first else "full_attention" for number in range(count)]
    return ["sliding"] * count


def _window(text: Mapping[str, Any]) -> int | None:
    return text.get("sliding_window") or text.get("attention_chunk_size") or None


def _attention(text: Mapping[str, Any], number: int, kind: str) -> Layer:
    window = _window(text) if kind in SLIDING else None
    heads = _per_layer(text.get("num_attention_heads") or text.get("n_head") or 1, number)
    if rank := text.get("kv_lora_rank"):
        rotary, plain = int(text.get("qk_rope_head_dim") or 0), int(text.get("qk_nope_head_dim") or 0)
        expanded = heads * (plain + rotary + int(text.get("v_head_dim") or plain))
        return Layer(per_token=int(rank) + rotary, expanded_per_token=expanded, window=window)
    width = int(text.get("hidden_size") or text.get("n_embd") or 0)
    size = int(text.get("head_dim") or width // heads)
    value = int(text.get("v_head_dim") or size)
    kept = _kv_heads(text, heads, number) * (size + value)
    return Layer(per_token=kept, expanded_per_token=kept, window=window)


def _kv_heads(text: Mapping[str, Any], heads: int, number: int) -> int:
    if text.get("model_type") == "falcon":
        if text.get("new_decoder_architecture"):
            return int(text.get("num_kv_heads") or heads)
        return 1 if text.get("multi_query", True) else heads
    found = text.get("num_key_value_heads") or text.get("num_kv_heads") or text.get("n_head_kv")
    if not found:
        return 1 if text.get("multi_query") else heads
    return _per_layer(found, number)


def _per_layer(value: Any, number: int) -> int:
    return int(value[number]) if isinstance(value, list) else int(value)


def _state(text: Mapping[str, Any]) -> int:
    """Return the elements of a recurrent layer's state: of the convolution before it, and its own."""
    hidden = int(text.get("hidden_size") or 0)
    if values := text.get("linear_num_value_heads"):  # gated delta net (Qwen3-Next)
        keys, size = int(text["linear_num_key_heads"]), int(text["linear_key_head_dim"])
        value = int(text["linear_value_head_dim"])
        channels = 2 * keys * size + int(values) * value
        return channels * int(text.get("linear_conv_kernel_dim", 4)) + int(values) * size * value
    if text.get("conv_L_cache"):  # a short convolution and nothing else (LFM2)
        return hidden * int(text["conv_L_cache"])
    states = int(text.get("mamba_d_state") or text.get("ssm_state_size") or text.get("state_size") or 16)
    kernel = int(text.get("mamba_d_conv") or text.get("conv_kernel") or 4)
    inner = int(text.get("mamba_d_ssm") or text.get("intermediate_size_ssm") or 0)
    heads = int(text.get("mamba_n_heads") or text.get("mamba_num_heads") or 0)
    head = text.get("mamba_d_head") or text.get("mamba_head_dim")  # may be "auto"
    if not inner:
        expand = float(text.get("mamba_expand") or text.get("expand") or 2)
        inner = heads * head if heads and isinstance(head, int) else round(expand * hidden)
    groups = int(text.get("mamba_n_groups") or text.get("n_groups") or 0) if heads else 0
    return (inner + 2 * groups * states) * kernel + inner * states
