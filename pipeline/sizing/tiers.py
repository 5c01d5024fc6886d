"""Which hardware is the smallest for models from one billion parameters to a trillion, at 16, 8, 4 and 2 bits.

Each tier is an openly published model's configuration, so that its key-value cache is a real one.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pipeline.records import Record
from pipeline.sizing import hardware
from pipeline.sizing.cache import Use, sequence_bytes
from pipeline.sizing.estimate import CUDA_BYTES
from pipeline.sizing.hardware import Hardware

STORED_BITS = {16: 16.0, 8: 8.5, 4: 4.5, 2: 2.3}
"""Bits a weight with the scales of its blocks: bfloat16, Q8_0, Q4_0 or AWQ in groups of 32, IQ2_XS."""

_LLAMA = {"model_type": "llama", "vocab_size": 128256}
_QWEN = {"model_type": "qwen2", "vocab_size": 152064}


class Tier(NamedTuple):
    """A published model."""

    parameters: int
    """As transformers creates it; counting takes seconds, and a test does it."""
    config: Mapping[str, Any]


def _tier(parameters: int, family: Mapping[str, Any], *sizes: int, **more: Any) -> Tier:
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    shape = dict(zip(keys, sizes, strict=True))
    return Tier(parameters, {**family, **shape, "tie_word_embeddings": False, **more})


_LATENT = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}

TIERS: Mapping[str, Tier] = {
    "1B (Llama 3.2 1B)": _tier(1_235_814_400, _LLAMA, 2048, 8192, 16, 32, 8, tie_word_embeddings=True),
    "3B (Llama 3.2 3B)": _tier(3_212_749_824, _LLAMA, 3072, 8192, 28, 24, 8, tie_word_embeddings=True),
    "8B (Llama 3.1 8B)": _tier(8_030_261_248, _LLAMA, 4096, 14336, 32, 32, 8),
    "14B (Qwen2.5 14B)": _tier(14_770_033_664, _QWEN, 5120, 13824, 48, 40, 8),
    "32B (Qwen2.5 32B)": _tier(32_763_876_352, _QWEN, 5120, 27648, 64, 40, 8),
    "70B (Llama 3.1 70B)": _tier(70_553_706_496, _LLAMA, 8192, 28672, 80, 64, 8),
    "123B (Mistral Large 2)": _tier(
        122_610_069_504, {"model_type": "mistral", "vocab_size": 32768}, 12288, 28672, 88, 96, 8,
    ),
    "235B (Qwen3 235B-A22B)": _tier(
        235_093_634_560, {"model_type": "qwen3_moe", "vocab_size": 151936}, 4096, 12288, 94, 64, 4,
        head_dim=128, moe_intermediate_size=1536, num_experts=128, num_experts_per_tok=8,
    ),
    "405B (Llama 3.1 405B)": _tier(405_853_388_800, _LLAMA, 16384, 53248, 126, 128, 8),
    "671B (DeepSeek-V3)": _tier(
        671_026_419_200, {"model_type": "deepseek_v3", "vocab_size": 129280}, 7168, 18432, 61, 128, 128, **_LATENT,
        moe_intermediate_size=2048, n_routed_experts=256, num_experts_per_tok=8, n_shared_experts=1,
        first_k_dense_replace=3,
    ),
    "1T (Kimi K2)": _tier(
        1_026_408_232_448, {"model_type": "deepseek_v3", "vocab_size": 163840}, 7168, 18432, 61, 64, 64, **_LATENT,
        moe_intermediate_size=2048, n_routed_experts=384, num_experts_per_tok=8, n_shared_experts=1,
        first_k_dense_replace=1,
    ),
}  # fmt: skip
"""From each model's config.json on the Hugging Face Hub."""


class Cell(Record):
    """One tier at one width."""

    tier: str
    parameters: int
    bits: int
    weight_bytes: int
    """At exactly so many bits a weight."""
    needed_bytes: int
    """With scales, the cache of all streams, and the runtime."""
    hardware: str
    """The smallest of the table that holds it."""
    machines: int
    """How many of it: more than one where a single one of nothing in the table is enough."""
    price_per_hour: float | None
    """The price of all of them."""


def matrix(context_tokens: int, streams: int) -> Iterator[Cell]:
    """Yield each tier at each width, with keys and values in 16 bits."""
    for name, tier in TIERS.items():
        kept = streams * sequence_bytes(tier.config, context_tokens, Use())
        for bits, stored in STORED_BITS.items():
            needed = round(tier.parameters * stored / 8) + kept + CUDA_BYTES
            smallest, machines = _smallest(needed)
            price = smallest.price_per_hour
            yield Cell(
                tier=name,
                parameters=tier.parameters,
                bits=bits,
                weight_bytes=tier.parameters * bits // 8,
                needed_bytes=needed,
                hardware=smallest.name,
                machines=machines,
                price_per_hour=None if price is None else price * machines,
            )


def _smallest(needed: int) -> tuple[Hardware, int]:
    """Return what has the least memory that is enough; of several alike, what is fastest."""
    enough = [one for one in hardware.table() if one.usable_bytes >= needed]
    if enough:
        return min(enough, key=lambda one: (one.usable_bytes, -(one.total_bandwidth or 0))), 1
    largest = max((one for one in hardware.table() if one.kind == "gpu"), key=lambda one: one.usable_bytes)
    return largest, -(-needed // largest.usable_bytes)
