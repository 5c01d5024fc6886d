"""The rules by which a GGUF artifact's size is planned, against llama-quantize's own dry run on the same shapes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from pipeline import processes
from pipeline.backends.gguf import mixture
from pipeline.backends.gguf.backend import Gguf
from pipeline.backends.gguf.recipe import IMATRIX_NEEDED, Quantization
from pipeline.errors import RequirementError
from pipeline.sizing import read
from pipeline.sizing.model import Model
from pipeline.toolchains import llama_cpp
from tests.support import published

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.*.w1": "ffn_gate_exps", "block_sparse_moe.experts.*.w2": "ffn_down_exps",
    "block_sparse_moe.experts.*.w3": "ffn_up_exps",
}  # fmt: skip
"""What the converter calls them."""

SMALL = {"hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 16, "vocab_size": 256}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "plain": {**published.LLAMA_8B, **SMALL, "num_attention_heads": 8, "num_key_value_heads": 4},
    "tied, heads shared by four": {
        **published.LLAMA_8B, **SMALL, "num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "rows that fill no block of 256": {
        **published.LLAMA_8B, **SMALL, "hidden_size": 480, "num_attention_heads": 8, "num_key_value_heads": 8,
        "head_dim": 60,
    },
    "80 layers": {
        **published.LLAMA_70B, **SMALL, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 80,
        "num_attention_heads": 8, "num_key_value_heads": 2,
    },
    "8 experts": {**published.MIXTRAL, **SMALL, "num_attention_heads": 8, "num_key_value_heads": 4},
}  # fmt: skip


def write(model: Model, path: Path) -> None:
    """Write zeros in these shapes as llama.cpp's converter would, in float16."""
    from gguf import GGUFWriter

    text = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_context_length(512)
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(text["vocab_size"])
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(2)
    for weight in model.weights:
        stem = re.sub(r"^model\.layers\.\d+\.|\.weight$", "", weight.name)
        name = NAMES[stem] if weight.layer is None else f"blk.{weight.layer}.{NAMES[stem]}"
        shape = (weight.copies, *weight.shape) if weight.expert else weight.shape
        floats = np.float32 if len(shape) == 1 or stem.endswith(".gate") else np.float16
        writer.add_tensor(f"{name}.weight", np.zeros(shape, floats))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("shape", SHAPES)
def test_planned_tensors_are_as_large_as_llama_quantize_says(shape: str, tmp_path: Path) -> None:
    try:
        tool = llama_cpp.find().tool("llama-quantize")
    except RequirementError as error:
        pytest.skip(str(error))
    model = read.counted(shape, dict(SHAPES[shape]))
    file = tmp_path / "model.gguf"
    write(model, file)
    for name in get_args(Quantization):
        if name == "IQ3_XXS":
            continue  # its mixture depends on the importance matrix, which a dry run has none of
        output = processes.run([tool, "--dry-run", file, name], what=f"llama-quantize --dry-run {name}")
        found = re.search(r"quant size += +([0-9.]+) MiB", output)
        assert found, output[-500:]
        recipe = Gguf(backend="gguf", quantization=name, imatrix=name in IMATRIX_NEEDED)
        ours = sum(mixture.bytes_of(piece, kind) for piece, kind in mixture.types(recipe, model)) / 2**20
        assert ours == pytest.approx(float(found[1]), abs=0.006), f"{shape}, {name}"
