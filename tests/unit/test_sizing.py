"""Sizes against what is published: parameters, key-value caches, weights, and transformers' own classes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.backends import AnyRecipe
from pipeline.backends.gguf.backend import Gguf
from pipeline.backends.gptq.backend import Gptq
from pipeline.backends.safetensors.backend import Safetensors
from pipeline.errors import CheckpointError
from pipeline.sizing import cache, hardware, read, tiers
from pipeline.sizing.cache import Use
from pipeline.sizing.estimate import Load
from pipeline.sizing.model import Model, Weight
from tests.support import published


def model(config: Mapping[str, Any]) -> Model:
    return read.counted("published", dict(config))


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"model_type": "gemma2"}, (True, True)),
        ({"model_type": "llama"}, (False, True)),
        ({"model_type": "gemma2", "tie_word_embeddings": False}, (False, False)),
        ({"model_type": "llama", "tie_word_embeddings": True}, (True, True)),
    ],
)
def test_tying_is_known_from_config_family_and_weights(
    config: Mapping[str, Any], tied: tuple[bool, bool], stored: bool
) -> None:
    names = ["model.embed_tokens.weight", *(["lm_head.weight"] if stored else [])]
    weights = tuple(Weight(name, "BF16", (8, 4)) for name in names)
    assert Model("model", config, weights).tied == tied[0 if stored else 1]


@pytest.mark.parametrize(("config", "billions", "active"), published.BILLIONS)
def test_parameters_are_those_of_the_model_cards(config: Mapping[str, Any], billions: float, active: float) -> None:
    found = model(config)
    assert found.parameters / 1e9 == pytest.approx(billions, rel=0.002)
    assert found.active_parameters / 1e9 == pytest.approx(active, rel=0.01)


@pytest.mark.parametrize(
    ("config", "bytes_"),
    [
        # DeepSeek-AI, "Insights into DeepSeek-V3" (arXiv:2505.09343), table 1: KB a token in bfloat16.
        (published.DEEPSEEK_V3, 70_272),
        (published.QWEN_72B, 327_680),
        (published.LLAMA_405B, 516_096),
        # Hugging Face, "Llama 3.1", inference memory: 15.62 and 39.06 GiB for 128,000 tokens.
        (published.LLAMA_8B, 131_072),
        (published.LLAMA_70B, 327_680),
        # 2 x layers x key-value heads x head size x 2 bytes, of each config.json.
        (published.QWEN_7B, 57_344),
        (published.MISTRAL_7B, 131_072),
        (published.GEMMA_2_9B, 344_064),
    ],
)
def test_a_token_of_cache_is_as_published(config: Mapping[str, Any], bytes_: int) -> None:
    assert cache.token_bytes(config, Use()) == bytes_
    assert cache.token_bytes(config, Use(bits=8)) == bytes_ // 2


def test_long_contexts_of_llama_as_published() -> None:
    sizes = [
        cache.sequence_bytes(config, 128_000, Use()) / 2**30 for config in (published.LLAMA_8B, published.LLAMA_70B)
    ]
    assert sizes == pytest.approx([15.62, 39.06], abs=0.01)


def test_windows_bound_the_cache_of_layers_that_have_one() -> None:
    short, long = (cache.sequence_bytes(published.MISTRAL_7B, tokens, Use()) for tokens in (4096, 32768))
    assert short == long == 4096 * 131_072
    assert cache.sequence_bytes(published.MISTRAL_7B, 32768, Use(windows=False)) == 8 * short
    # Gemma 2: every other layer, so at 8192 tokens three quarters.
    whole = cache.sequence_bytes(published.GEMMA_2_9B, 8192, Use(windows=False))
    assert cache.sequence_bytes(published.GEMMA_2_9B, 8192, Use()) == whole * 3 // 4
    # Gemma 3: five of six.
    gemma_3 = {**published.GEMMA_2_9B, "model_type": "gemma3_text", "sliding_window_pattern": 6, "sliding_window": 1024}
    per_layer = 2 * 8 * 256 * 2
    assert cache.sequence_bytes(gemma_3, 8192, Use()) == per_layer * (7 * 8192 + 35 * 1024)
    # A window that is stated but not used.
    assert cache.sequence_bytes(published.QWEN_7B, 200_000, Use()) == 200_000 * 57_344


def test_latent_attention_written_out_is_what_transformers_keeps() -> None:
    """128 heads of 128 + 64 for keys and 128 for values."""
    assert cache.token_bytes(published.DEEPSEEK_V3, Use(latent=False)) == 61 * 128 * (128 + 64 + 128) * 2


def test_one_shared_head_and_shared_layers() -> None:
    falcon = {
        "model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32,
        "multi_query": True, "new_decoder_architecture": False,
    }  # fmt: skip
    assert cache.token_bytes(falcon, Use()) == 32 * 2 * 64 * 2
    # Gemma 3n reads the caches of earlier layers in its last ones.
    shared = {**published.LLAMA_8B, "num_kv_shared_layers": 12}
    assert cache.token_bytes(shared, Use()) == 20 * 4096
    # Hunyuan-Large shares each cache with the layer after it.
    assert cache.token_bytes({**published.LLAMA_8B, "use_cla": True, "cla_share_factor": 2}, Use()) == 16 * 4096


def test_recurrent_layers_keep_a_state_and_no_tokens() -> None:
    """Jamba: one layer of eight attends; Mamba's state is inner x (16 + 4) elements in float32."""
    jamba = {
        "model_type": "jamba", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "attn_layer_period": 8, "attn_layer_offset": 4, "mamba_d_state": 16,
        "mamba_d_conv": 4, "mamba_expand": 2,
    }  # fmt: skip
    state = 28 * 8192 * (16 + 4) * 4
    assert cache.sequence_bytes(jamba, 0, Use()) == state
    assert cache.sequence_bytes(jamba, 1000, Use()) == state + 1000 * 4 * 4096
    listed = {**published.LLAMA_8B, "layer_types": ["linear_attention"] * 24 + ["full_attention"] * 8}
    assert cache.token_bytes({**listed, "mamba_d_state": 16}, Use()) == 8 * 4096


RECIPES: tuple[tuple[AnyRecipe, float, float], ...] = (
    (Safetensors(backend="safetensors", dtype="bfloat16"), 2.0, 2.0),
    (Gguf(backend="gguf", quantization="Q8_0"), 1.0, 1.07),
    (Gptq(backend="gptq", bits=8), 1.0, 1.25),
    (Gguf(backend="gguf", quantization="Q4_0"), 0.5, 0.65),
    (Gptq(backend="gptq", bits=4), 0.5, 0.8),
    (Gguf(backend="gguf", quantization="IQ2_XXS"), 0.25, 0.4),
)


@pytest.mark.parametrize("config", [published.LLAMA_1B, published.LLAMA_8B, published.LLAMA_70B])
@pytest.mark.parametrize(("recipe", "least", "most"), RECIPES)
def test_weights_take_two_one_half_and_a_quarter_gigabyte_a_billion(
    config: Mapping[str, Any], recipe: AnyRecipe, least: float, most: float
) -> None:
    """More than the bare bits: scales, and embeddings in more bits, of which a model of 1B has the most."""
    found = model(config)
    if config is published.LLAMA_1B and recipe.backend == "gptq":
        most *= 1.35  # the embedding is a fifth of it, and stays in 16 bits
    assert least <= recipe.estimate(found, Load()).weight_bytes / found.parameters <= most * 1.0001


def test_the_tier_table_grows_with_size_and_bits() -> None:
    cells = list(tiers.matrix(4096, 1))
    for cell in cells:
        assert cell.weight_bytes / cell.parameters == pytest.approx(cell.bits / 8)
        assert hardware.find(cell.hardware).usable_bytes * cell.machines >= cell.needed_bytes > cell.weight_bytes
    first = {cell.tier: cell for cell in cells if cell.bits == 4}
    assert hardware.find(first["70B (Llama 3.1 70B)"].hardware).usable_bytes < 60e9
    sizes = [cell.parameters for cell in first.values()]
    assert sizes == sorted(sizes)
    assert 1e9 < sizes[0] < 1.3e9
    assert sizes[-1] > 1e12


def test_each_tier_has_the_parameters_of_its_configuration() -> None:
    for name, tier in tiers.TIERS.items():
        assert model(tier.config).parameters == tier.parameters, name


def test_a_family_that_cannot_be_counted_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"no causal language model of the model_type rwkv7"):
        model({"model_type": "rwkv7"})
    with pytest.raises(CheckpointError, match=r"cannot make a llama of this config.json.*hidden_size"):
        model({"model_type": "llama", "hidden_size": "wide", "vocab_size": 8, "num_hidden_layers": 1})


SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip


LATENT: dict[str, Any] = {
    "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "kv_lora_rank": 16,
    "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
DENSE = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "phi3", "smollm3", "ministral",
    "olmo2", "glm4", "gpt2", "gpt_neox", "starcoder2",
)  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    **{family: {} for family in DENSE},
    "mamba": {"state_size": 4},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24},
    "deepseek_v2": {"n_routed_experts": 4, **LATENT},
    "deepseek_v3": {"n_routed_experts": 4, **LATENT},
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 40, "interleave_moe_layer_step": 2},
}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_is_counted_is_what_files_hold(family: str, tmp_path: Path) -> None:
    """Names, shapes and types, experts as they are stored, and no head where it is the embedding."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family]})
    AutoModelForCausalLM.from_config(config, dtype="bfloat16").save_pretrained(tmp_path)
    stored = read.folder(tmp_path)
    counted = read.counted("config.json", json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
    assert not stored.counted
    assert sorted(counted.weights, key=str) == sorted(stored.weights, key=str)
