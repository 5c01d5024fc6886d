"""A tiny random checkpoint of each model family, as its publisher would lay it out.

Hidden size 256: K-quants and groups of 128 apply without falling back. Two layers, but for families that alternate
kinds of layers. `config.json` has the keys that published checkpoints of the family have. Weights are drawn wider than
a training run would start from, and norms, biases and multipliers are off their neutral values, so that an artifact
that forgets a scale, a soft cap, a bias, a rotation or the sliding window gives visibly different logits.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import normalizers
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.vocabularies import ByteLevel, SentencePiece, Special

SEED = 20240229
MATRIX_DEVIATION = 0.035
"""Standard deviation of every weight matrix: logits differ by a few nats, and attention is neither flat nor hard."""
NORM_SPREAD = 0.7
"""Standard deviation of the logarithm of a norm's factors. Trained norms have strong and weak channels too; with equal
ones AWQ's scales would all be 1, and folding them into the wrong norm would go unseen."""
HEAD_NORM_SPREAD = 0.3
"""The same for norms of query and key heads: more would make attention so hard that any rounding flips it."""
BIAS_DEVIATION = 0.3
NORMS = ("norm.weight", "ln_f.weight", "ln_1.weight", "ln_2.weight")
HEAD_NORMS = ("q_norm.weight", "k_norm.weight")
"""How the names of norms' factors end."""

LLAMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHAT_ML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI_3_CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

LLAMA_PIECES = SentencePiece(
    special=Special(
        bos="<s>", eos="</s>", unk="<unk>", adds_bos=True, tokenizer_class="LlamaTokenizer", chat_template=LLAMA_CHAT
    ),
    control={"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1},
)
GEMMA_PIECES = SentencePiece(
    special=Special(
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        unk="<unk>",
        adds_bos=True,
        tokenizer_class="GemmaTokenizer",
        chat_template=GEMMA_CHAT,
    ),
    control={"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>"},
    prefix_space=False,
    symbols=("<mask>", "<start_of_turn>", "<end_of_turn>"),
)
PHI_3_PIECES = SentencePiece(
    special=Special(
        bos="<s>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        unk="<unk>",
        adds_bos=False,
        tokenizer_class="LlamaTokenizer",
        chat_template=PHI_3_CHAT,
    ),
    control={"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1},
    added=("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
    pieces=1000,
    # Not 2 x intermediate_size: the onnxruntime-genai builder takes any layer with vocab_size outputs for the head.
    rows=1056,
)
LLAMA_3_BYTES = ByteLevel(
    vocabulary="llama-bpe",
    special=Special(
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        adds_bos=True,
        tokenizer_class="PreTrainedTokenizerFast",
        chat_template=LLAMA_3_CHAT,
    ),
    ignore_merges=True,
)
QWEN_BYTES = ByteLevel(
    vocabulary="qwen2",
    special=Special(
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        adds_bos=False,
        tokenizer_class="Qwen2Tokenizer",
        chat_template=CHAT_ML,
    ),
    normalizer=normalizers.NFC,
)
FALCON_BYTES = ByteLevel(
    vocabulary="falcon",
    special=Special(bos=None, eos="<|endoftext|>", adds_bos=False, tokenizer_class="PreTrainedTokenizerFast"),
)
GPT_2_BYTES = ByteLevel(
    vocabulary="gpt-2",
    special=Special(
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        unk="<|endoftext|>",
        adds_bos=False,
        tokenizer_class="GPT2Tokenizer",
    ),
)
GRANITE_BYTES = ByteLevel(
    vocabulary="refact",
    special=Special(
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        unk="<|endoftext|>",
        adds_bos=False,
        tokenizer_class="GPT2Tokenizer",
    ),
)

SHAPE: Mapping[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row of the support table."""

    title: str
    architecture: str
    model_type: str
    vocabulary: ByteLevel | SentencePiece
    config: Mapping[str, Any]
    """What differs from SHAPE; a key with None is left out of config.json."""
    bos_id: int
    eos_id: int

    def make(self, folder: Path, vocabularies: Path) -> None:
        """Write the checkpoint, the same bytes each time; `vocabularies` is the toolchain's folder of that name."""
        folder.mkdir(parents=True)
        rows = self.vocabulary.write(folder, vocabularies)
        merged = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": rows,
            "bos_token_id": self.bos_id,
            "eos_token_id": self.eos_id,
            **SHAPE,
            **self.config,
        }
        config = {key: value for key, value in merged.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        generation = {"bos_token_id": self.bos_id, "eos_token_id": self.eos_id}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2), encoding="utf-8")
        _save_weights(folder)


def _save_weights(folder: Path) -> None:
    """Draw the weights, and let transformers write them under the names that published checkpoints use."""
    published = (folder / "config.json").read_bytes()
    generation = (folder / "generation_config.json").read_bytes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape)
            if weight.ndim > 1:
                drawn = noise * MATRIX_DEVIATION
            elif name.endswith(NORMS):
                # The neutral weight is 1, or 0 where the family adds 1 to it; either way the factor is drawn.
                spread = HEAD_NORM_SPREAD if name.endswith(HEAD_NORMS) else NORM_SPREAD
                drawn = weight.data.float() - 1 + (noise * spread).exp()
            else:
                drawn = noise * BIAS_DEVIATION
            weight.data.copy_(drawn)
    model.save_pretrained(folder)
    (folder / "config.json").write_bytes(published)
    (folder / "generation_config.json").write_bytes(generation)


FAMILIES: Mapping[str, Family] = {
    "llama-2": Family(
        title="Llama 2",
        architecture="LlamaForCausalLM",
        model_type="llama",
        vocabulary=LLAMA_PIECES,
        config={"num_key_value_heads": 4},
        bos_id=1,
        eos_id=2,
    ),
    "llama-3": Family(
        title="Llama 3",
        architecture="LlamaForCausalLM",
        model_type="llama",
        vocabulary=LLAMA_3_BYTES,
        config={
            "head_dim": 64,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_type": "llama3",
            },
            "tie_word_embeddings": True,
        },
        bos_id=128000,
        eos_id=128001,
    ),
    "mistral": Family(
        title="Mistral",
        architecture="MistralForCausalLM",
        model_type="mistral",
        vocabulary=LLAMA_PIECES,
        config={"rope_theta": 1000000.0, "head_dim": 64},
        bos_id=1,
        eos_id=2,
    ),
    "qwen-2": Family(
        title="Qwen2",
        architecture="Qwen2ForCausalLM",
        model_type="qwen2",
        vocabulary=QWEN_BYTES,
        config={
            "rope_theta": 1000000.0,
            "sliding_window": 512,
            "use_sliding_window": False,
            "max_window_layers": 2,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
        bos_id=151643,
        eos_id=151645,
    ),
    "qwen-3": Family(
        title="Qwen3",
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        vocabulary=QWEN_BYTES,
        config={
            "head_dim": 128,
            "attention_bias": False,
            "rope_theta": 1000000.0,
            "use_sliding_window": False,
            "max_window_layers": 2,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
        bos_id=151643,
        eos_id=151645,
    ),
    "gemma-2": Family(
        title="Gemma 2",
        architecture="Gemma2ForCausalLM",
        model_type="gemma2",
        vocabulary=GEMMA_PIECES,
        config={
            "head_dim": 64,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 64,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "sliding_window": 32,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": None,
        },
        bos_id=2,
        eos_id=1,
    ),
    "gemma-3": Family(
        title="Gemma 3 (text)",
        architecture="Gemma3ForCausalLM",
        model_type="gemma3_text",
        vocabulary=GEMMA_PIECES,
        config={
            "head_dim": 64,
            "hidden_act": None,
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 64,
            "rope_theta": 1000000,
            "rope_local_base_freq": 10000,
            "sliding_window": 32,
            "sliding_window_pattern": 6,  # llama.cpp knows no other for this family, and does not look
            "num_hidden_layers": 6,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": None,
        },
        bos_id=2,
        eos_id=1,
    ),
    "phi-3": Family(
        title="Phi-3",
        architecture="Phi3ForCausalLM",
        model_type="phi3",
        vocabulary=PHI_3_PIECES,
        config={
            "num_key_value_heads": 4,
            "original_max_position_embeddings": 512,
            "rope_scaling": None,
            "sliding_window": 511,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "pad_token_id": 1000,
        },
        bos_id=1,
        eos_id=1000,
    ),
    "falcon": Family(
        title="Falcon",
        architecture="FalconForCausalLM",
        model_type="falcon",
        vocabulary=FALCON_BYTES,
        config={
            "alibi": False,
            "bias": False,
            "multi_query": True,
            "new_decoder_architecture": False,
            "parallel_attn": True,
            "hidden_dropout": 0.0,
            "layer_norm_epsilon": 1e-5,
            "intermediate_size": None,
            "num_key_value_heads": None,
            "hidden_act": None,
            "rms_norm_eps": None,
            "max_position_embeddings": None,
            "rope_theta": None,
            "tie_word_embeddings": None,
        },
        bos_id=11,
        eos_id=11,
    ),
    "gpt-2": Family(
        title="GPT-2",
        architecture="GPT2LMHeadModel",
        model_type="gpt2",
        vocabulary=GPT_2_BYTES,
        config={
            "activation_function": "gelu_new",
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "layer_norm_epsilon": 1e-5,
            "n_ctx": 512,
            "n_embd": 256,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 512,
            **dict.fromkeys(set(SHAPE) - {"initializer_range", "torch_dtype", "use_cache"}),
        },
        bos_id=50256,
        eos_id=50256,
    ),
    "granite": Family(
        title="Granite 3",
        architecture="GraniteForCausalLM",
        model_type="granite",
        vocabulary=GRANITE_BYTES,
        config={
            "attention_bias": False,
            "attention_multiplier": 0.03125,
            "embedding_multiplier": 12.0,
            "logits_scaling": 4.0,
            "mlp_bias": False,
            "residual_multiplier": 0.5,
            "tie_word_embeddings": True,
        },
        bos_id=0,
        eos_id=0,
    ),
    "mixtral": Family(
        title="Mixtral (mixture of experts)",
        architecture="MixtralForCausalLM",
        model_type="mixtral",
        vocabulary=LLAMA_PIECES,
        config={
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.02,
            "output_router_logits": False,
        },
        bos_id=1,
        eos_id=2,
    ),
}
