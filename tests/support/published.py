"""Configurations of published models, as in their config.json on the Hub, and what is published of them."""

from collections.abc import Mapping
from typing import Any

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "tie_word_embeddings": False,
    "max_position_embeddings": 131072, "num_key_value_heads": 8, "torch_dtype": "bfloat16",
}  # fmt: skip
LLAMA_1B = {
    **LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_8B = {
    **LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
}  # fmt: skip
LLAMA_70B = {
    **LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
}  # fmt: skip
LLAMA_405B = {
    **LLAMA, "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
}  # fmt: skip
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "sliding_window": 4096, "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip
"""Version 0.1, the one with a window."""
QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584,
    "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28, "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
}  # fmt: skip
QWEN_72B = {
    **QWEN_7B, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "max_window_layers": 80,
}  # fmt: skip
GEMMA_2_9B = {
    "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 3584,
    "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 256, "sliding_window": 4096, "max_position_embeddings": 8192,
}  # fmt: skip
MIXTRAL = {
    **MISTRAL_7B, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8,
    "num_experts_per_tok": 2, "sliding_window": None,
}  # fmt: skip
QWEN_3_30B = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048,
    "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "tie_word_embeddings": False, "max_position_embeddings": 40960,
}  # fmt: skip
DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 129280,
    "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
    "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 256, "num_experts_per_tok": 8,
    "n_shared_experts": 1, "first_k_dense_replace": 3, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "tie_word_embeddings": False,
    "max_position_embeddings": 163840,
}  # fmt: skip
LLAMA_4_MAVERICK = {
    "architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text", "vocab_size": 202048, "hidden_size": 5120,
    "intermediate_size": 8192, "intermediate_size_mlp": 16384, "num_hidden_layers": 48, "num_attention_heads": 40,
    "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 128, "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2, "tie_word_embeddings": False, "max_position_embeddings": 1048576,
}  # fmt: skip

BILLIONS: tuple[tuple[Mapping[str, Any], float, float], ...] = (
    (LLAMA_1B, 1.236, 1.236), (LLAMA_8B, 8.03, 7.5), (LLAMA_70B, 70.6, 69.5), (LLAMA_405B, 405.9, 403.8),
    (MISTRAL_7B, 7.24, 7.1), (QWEN_7B, 7.62, 7.07), (GEMMA_2_9B, 9.24, 9.24), (MIXTRAL, 46.7, 12.8),
    (QWEN_3_30B, 30.5, 3.04), (DEEPSEEK_V3, 671.0, 36.6), (LLAMA_4_MAVERICK, 400.7, 16.2),
)  # fmt: skip
"""Parameters as model cards state them, and those that a token goes through, without the input embedding: cards of
mixtures say 12.9, 3.3, 37 and 17 billion with it."""
