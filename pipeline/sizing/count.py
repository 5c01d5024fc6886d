"""Names and shapes of a model's tensors from config.json alone, where there are no weights to read headers of.

As transformers' own classes create them; a test holds each family here against such a class. Families that are not here
are refused rather than guessed at.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.checkpoints import layout
from pipeline.errors import CheckpointError
from pipeline.sizing.model import EXPERT_COUNTS, Weight, tied_unless_said

DENSE = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "phi3", "smollm3", "ministral"}
)
MIXTURES = frozenset({"mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "kimi_k2", "llama4_text"})

BIASED = frozenset({"qwen2", "qwen2_moe"})
"""Families whose query, key and value projections have a bias, whatever the configuration says."""

NORMS_OF_HEADS = frozenset({"qwen3", "qwen3_moe", "gemma3_text"})
"""Families that norm each head's query and key."""

FOUR_NORMS = frozenset({"gemma2", "gemma3_text"})
"""Families with a norm before and after both attention and feed-forward."""

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def weights(config: Mapping[str, Any], source: str) -> tuple[Weight, ...]:
    """Return the tensors. CheckpointError for a family that is not known here, naming those that are."""
    text = layout.text_config(config)
    family = str(text.get("model_type"))
    if family not in DENSE | MIXTURES:
        known = ", ".join(sorted(DENSE | MIXTURES))
        raise CheckpointError(
            f"{source}: holds no weights, and parameters of {family} cannot be counted from config.json (known: "
            f"{known}); name a folder or repository that has them: only their headers are read"
        )
    dtype = DTYPES.get(str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype")), "BF16")
    try:
        return tuple(Weight(name, dtype, shape, copies) for name, shape, copies in _tensors(text, family))
    except KeyError as error:
        raise CheckpointError(f"{source}: config.json names no {error}; parameters cannot be counted") from error


Tensor = tuple[str, tuple[int, ...], int]
"""Name, shape, and how many there are of them."""


def _tensors(text: Mapping[str, Any], family: str) -> Iterator[Tensor]:
    hidden, vocabulary = text["hidden_size"], text["vocab_size"]
    yield "model.embed_tokens.weight", (vocabulary, hidden), 1
    for layer in range(text["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        norms = ["input_layernorm", "post_attention_layernorm"]
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if family in FOUR_NORMS else []
        for norm in norms:
            yield f"{at}{norm}.weight", (hidden,), 1
        attention = _latent(text) if text.get("kv_lora_rank") else _attention(text, family)
        for name, shape in attention:
            yield f"{at}self_attn.{name}", shape, 1
        for name, shape, copies in _feed_forward(text, family, layer):
            yield at + name, shape, copies
    yield "model.norm.weight", (hidden,), 1
    if not text.get("tie_word_embeddings", tied_unless_said(text)):
        yield "lm_head.weight", (vocabulary, hidden), 1


def _attention(text: Mapping[str, Any], family: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    size = text.get("head_dim") or hidden // heads
    wide, narrow = heads * size, (text.get("num_key_value_heads") or heads) * size
    if family == "phi3":
        yield "qkv_proj.weight", (wide + 2 * narrow, hidden)
        yield "o_proj.weight", (hidden, wide)
        return
    bias = family in BIASED or text.get("attention_bias")
    for name, rows in (("q_proj", wide), ("k_proj", narrow), ("v_proj", narrow)):
        yield f"{name}.weight", (rows, hidden)
        if bias:
            yield f"{name}.bias", (rows,)
    yield "o_proj.weight", (hidden, wide)
    if text.get("attention_bias") and family not in BIASED:
        yield "o_proj.bias", (hidden,)
    if family in NORMS_OF_HEADS:
        yield "q_norm.weight", (size,)
        yield "k_norm.weight", (size,)


def _latent(text: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Multi-head latent attention: keys and values through one narrow vector, queries through another or directly."""
    hidden, heads, rank = text["hidden_size"], text["num_attention_heads"], text["kv_lora_rank"]
    plain, rotary, value = text["qk_nope_head_dim"], text["qk_rope_head_dim"], text["v_head_dim"]
    if queries := text.get("q_lora_rank"):
        yield "q_a_proj.weight", (queries, hidden)
        yield "q_a_layernorm.weight", (queries,)
        yield "q_b_proj.weight", (heads * (plain + rotary), queries)
    else:
        yield "q_proj.weight", (heads * (plain + rotary), hidden)
    yield "kv_a_proj_with_mqa.weight", (rank + rotary, hidden)
    yield "kv_a_layernorm.weight", (rank,)
    yield "kv_b_proj.weight", (heads * (plain + value), rank)
    yield "o_proj.weight", (hidden, heads * value)


def _feed_forward(text: Mapping[str, Any], family: str, layer: int) -> Iterator[Tensor]:
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    if family == "phi3":
        yield "mlp.gate_up_proj.weight", (2 * inner, hidden), 1
        yield "mlp.down_proj.weight", (hidden, inner), 1
    elif not _is_mixture(text, family, layer):
        dense = text.get("intermediate_size_mlp") if family == "llama4_text" else inner
        yield from _gated("mlp", hidden, dense or inner)
    elif family == "mixtral":
        yield "block_sparse_moe.gate.weight", (text["num_local_experts"], hidden), 1
        for name, shape in (("w1", (inner, hidden)), ("w2", (hidden, inner)), ("w3", (inner, hidden))):
            yield f"block_sparse_moe.experts.*.{name}.weight", shape, text["num_local_experts"]
    elif family == "llama4_text":
        experts = text["num_local_experts"]
        yield "feed_forward.router.weight", (experts, hidden), 1
        yield "feed_forward.experts.gate_up_proj", (hidden, 2 * inner), experts
        yield "feed_forward.experts.down_proj", (inner, hidden), experts
        yield from _gated("feed_forward.shared_expert", hidden, inner)
    else:
        yield from _many(text, family)


def _many(text: Mapping[str, Any], family: str) -> Iterator[Tensor]:
    """Many small experts, and some that every token goes through."""
    hidden, inner = text["hidden_size"], text["moe_intermediate_size"]
    experts = next(int(text[key]) for key in EXPERT_COUNTS if text.get(key))
    yield "mlp.gate.weight", (experts, hidden), 1
    if family in ("deepseek_v3", "kimi_k2"):
        yield "mlp.gate.e_score_correction_bias", (experts,), 1
    yield from _gated("mlp.experts.*", hidden, inner, experts)
    if shared := text.get("n_shared_experts"):
        yield from _gated("mlp.shared_experts", hidden, inner * shared)
    if family == "qwen2_moe":
        yield from _gated("mlp.shared_expert", hidden, text["shared_expert_intermediate_size"])
        yield "mlp.shared_expert_gate.weight", (1, hidden), 1


def _is_mixture(text: Mapping[str, Any], family: str, layer: int) -> bool:
    if family not in MIXTURES:
        return False
    if family == "llama4_text":  # every n-th layer, the last of each n
        return (layer + 1) % int(text.get("interleave_moe_layer_step", 1)) == 0
    if layer < int(text.get("first_k_dense_replace") or 0) or layer in (text.get("mlp_only_layers") or ()):
        return False
    return (layer + 1) % int(text.get("decoder_sparse_step") or 1) == 0


def _gated(at: str, hidden: int, inner: int, copies: int = 1) -> Iterator[Tensor]:
    yield f"{at}.gate_proj.weight", (inner, hidden), copies
    yield f"{at}.up_proj.weight", (inner, hidden), copies
    yield f"{at}.down_proj.weight", (hidden, inner), copies
