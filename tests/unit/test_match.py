"""Weights against the architecture: what is missing, unexpected, misshapen, quantized, or an adapter, by name."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoints import architecture, match
from pipeline.checkpoints.weights import Entry, read_header
from pipeline.errors import CheckpointError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
TIED = {**LLAMA, "tie_word_embeddings": True}
FILES = ("config.json", "model.safetensors", "tokenizer.json")
NORM, QUERY, HEAD = "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"

Change = Callable[[dict[str, Entry]], None]


def entry(name: str, *shape: int, dtype: str = "BF16") -> Entry:
    return Entry(name, dtype, shape, 0, 0)


def stored(config: dict[str, Any], change: Change = lambda _: None) -> list[Entry]:
    """The tensors of such a model, changed."""
    found = {one.name: one for one in architecture.tensors(config, "model")}
    change(found)
    return list(found.values())


def put(*entries: Entry) -> Change:
    return lambda found: found.update({one.name: one for one in entries})


def wrapped(prefix: str) -> Change:
    def change(found: dict[str, Entry]) -> None:
        renamed = [dataclasses.replace(one, name=prefix + one.name) for one in found.values()]
        found.clear()
        put(*renamed)(found)

    return change


def adapted(found: dict[str, Entry]) -> None:
    found.pop(QUERY)
    stem = QUERY.removesuffix(".weight")
    put(entry(f"{stem}.base_layer.weight", 32, 32), entry(f"{stem}.lora_A.default.weight", 8, 32))(found)


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (LLAMA, lambda _: None),
        (TIED, lambda _: None),
        (TIED, put(entry(HEAD, 64, 32))),
        (LLAMA, put(entry("model.layers.0.self_attn.rotary_emb.inv_freq", 4, dtype="F32"))),
        ({**LLAMA, "quantization_config": None, "vision_config": None}, lambda _: None),
    ],
    ids=["plain", "tied", "tied-stored-twice", "rotary", "null"],
)
def test_what_fits_passes(config: dict[str, Any], change: Change) -> None:
    match.check(config, FILES, stored(config, change), "model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found.pop(NORM), f"1 tensor missing ({NORM}). The files are incomplete"),
        (lambda found: found.pop(HEAD), "1 tensor missing (lm_head.weight)"),
        (put(entry(HEAD, 60, 32)), "1 tensor of another shape (lm_head.weight [60, 32], expected [64, 32])"),
        (put(entry("model.layers.2.mlp.up_proj.weight", 48, 32)), "not expected (model.layers.2.mlp.up_proj.weight)"),
        (wrapped("_orig_mod."), "Names begin with `_orig_mod.`; torch.compile puts it there"),
        (wrapped("base_model.model."), "call merge_and_unload()"),
        (wrapped("module."), "save the `module` of the wrapped model"),
        (adapted, "An adapter is in them that was not merged"),
        (put(entry(QUERY, 32, 32, dtype="F8_E4M3"), entry(f"{QUERY}_scale", dtype="F32")), "quantized (FP8: "),
        (put(entry(QUERY, 32, 32, dtype="I8")), f"is already quantized ({QUERY} is I8)"),
        (put(entry("model.layers.0.mlp.up_proj.qweight", 4, 48, dtype="I32")), "already quantized (GPTQ or AWQ: "),
    ],
)
def test_what_does_not_is_refused_by_name(change: Change, words: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        match.check(LLAMA, FILES, stored(LLAMA, change), "model")
    assert words in str(refused.value)


MIXTRAL = {**LLAMA, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4}
EXPERT = "model.layers.0.block_sparse_moe.experts.2.w1.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found.pop(EXPERT), f"1 tensor missing ({EXPERT})"),
        (put(entry(EXPERT, 40, 32)), f"1 tensor of another shape ({EXPERT} [40, 32], expected [48, 32])"),
    ],
    ids=["missing", "misshapen"],
)
def test_an_expert_that_cannot_be_joined_is_named(change: Change, words: str) -> None:
    """transformers raises instead of reporting it."""
    with pytest.raises(CheckpointError) as refused:
        match.check(MIXTRAL, FILES, stored(MIXTRAL, change), "model")
    assert words in str(refused.value)


def test_mlx_is_known_by_its_settings() -> None:
    config = {**LLAMA, "quantization": {"group_size": 64, "bits": 4}}
    change = put(entry(QUERY, 32, 4, dtype="U32"))
    with pytest.raises(CheckpointError, match=r"already quantized \(MLX: "):
        match.check(config, FILES, stored(config, change), "model")


@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "LlamaModel", "BertModel"])
def test_what_generates_nothing_is_refused_by_its_architecture(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name} is no causal language model"):
        match.check({**LLAMA, "architectures": [name]}, FILES, stored(LLAMA), "model")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_model_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"has {name} beside its weights.*merge_and_unload"):
        match.check(LLAMA, [*FILES, name], stored(LLAMA), "model")


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("mixtral", {"num_local_experts": 4}),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 16}),
        ("gpt2", {}),
        ("gemma3_text", {}),
    ],
)
def test_files_that_transformers_writes_fit(family: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    """Also where it joins experts in memory, and where it leaves buffers in files."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {key: LLAMA[key] for key in LLAMA if key.endswith(("_size", "_layers", "_heads"))}
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **shape, head_dim=8, **sizes), dtype=torch.bfloat16
    ).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    entries = list(read_header(tmp_path / "model.safetensors", family))
    if family == "gpt2":
        entries.append(entry("transformer.h.0.attn.bias", 1, 1, 64, 64))
    match.check(config, FILES, entries, family)
    lost = next(one for one in entries if one.name.endswith(("norm.weight", "ln_f.weight")))
    with pytest.raises(CheckpointError, match=rf"1 tensor missing \({lost.name}\)"):
        match.check(config, FILES, [one for one in entries if one is not lost], family)
