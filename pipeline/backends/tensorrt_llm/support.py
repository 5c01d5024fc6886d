"""What TensorRT-LLM supports, as its sources and documentation have it; flags.toml says where each table was read.

Which architectures it lists is in pipeline.architectures.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Mode = Literal["engine", "checkpoint"]
Quantization = Literal["bf16", "fp8", "int8_wo", "int4_wo", "int4_awq", "w4a16_gptq"]
KvCache = Literal["auto", "fp8", "int8"]

ALGORITHM: Mapping[Quantization, str | None] = {
    "bf16": None,
    "fp8": "FP8",
    "int8_wo": "W8A16",
    "int4_wo": "W4A16",
    "int4_awq": "W4A16_AWQ",
    "w4a16_gptq": "W4A16_GPTQ",
}
"""Names of `QuantAlgo`, as written configs have them."""

KV_ALGORITHM: Mapping[KvCache, str | None] = {"auto": None, "fp8": "FP8", "int8": "INT8"}

CALIBRATED = frozenset({"fp8", "int4_awq"})
"""Quantizations whose scales come from activations."""

GROUP_SIZES = frozenset({64, 128})
"""What the groupwise plugin has kernels for."""

LEGACY_CONVERTER = frozenset({"GraniteForCausalLM"})
"""Architectures whose multipliers the unified converter loses; their example turns it off."""


class Capabilities(NamedTuple):
    """The range of compute capabilities that kernels were made for."""

    least: tuple[int, int]
    below: tuple[int, int] | None = None

    def __contains__(self, capability: object) -> bool:
        """Tell whether a GPU of this (major, minor) will do."""
        assert isinstance(capability, tuple)
        return self.least <= capability and (self.below is None or capability < self.below)

    def __str__(self) -> str:
        """As in "8.0 to below 10.0"."""
        least = "{}.{}".format(*self.least)
        return least if self.below is None else least + " to below {}.{}".format(*self.below)


BLACKWELL = (10, 0)
"""The builder raises on it for integer weights and integer KV caches, and no matrix has a row for them."""

CAPABILITIES: Mapping[Quantization, Capabilities] = {
    "bf16": Capabilities((8, 0)),
    "fp8": Capabilities((8, 9)),
    "int8_wo": Capabilities((8, 0), BLACKWELL),
    "int4_wo": Capabilities((8, 0), BLACKWELL),
    "int4_awq": Capabilities((8, 0), BLACKWELL),
    "w4a16_gptq": Capabilities((8, 0), BLACKWELL),
}


def capabilities(quantization: Quantization, kv_cache: KvCache) -> Capabilities:
    """Return what weights and KV cache together ask of a GPU."""
    wanted = CAPABILITIES[quantization]
    return Capabilities(wanted.least, BLACKWELL) if kv_cache == "int8" else wanted


def parse(capability: str) -> tuple[int, int]:
    """Turn "8.9" into (8, 9): as text, 10.0 would come before 8.9."""
    major, _, minor = capability.partition(".")
    return int(major), int(minor)
