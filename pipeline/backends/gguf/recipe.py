"""GGUF: the single-file format of llama.cpp and of what embeds it (Ollama, LM Studio)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.records import Record

Quantization = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S",
    "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
]  # fmt: skip
"""Names that llama-quantize takes; a K type or an IQ type mixes several tensor types."""

WITHOUT_IMATRIX = frozenset({"F32", "F16", "BF16", "Q8_0"})
"""At 8 bits and more, rounding to nearest is as good as weighted rounding, and llama.cpp does not weight it."""

IMATRIX_NEEDED = frozenset({"IQ3_XXS", "IQ3_XS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"})
"""llama-quantize refuses these without an importance matrix."""


class GgufRecipe(Record):
    """A GGUF file of one quantization type."""

    backend: Literal["gguf"]
    source: Literal["checkpoint"] = Field(default="checkpoint", alias="from")
    quantization: Quantization
    imatrix: bool = True
    """Weight the rounding error of each column by its mean squared activation on the calibration windows; used for
    types under 8 bits only."""

    @model_validator(mode="after")
    def _check_imatrix(self) -> Self:
        if self.quantization in IMATRIX_NEEDED and not self.imatrix:
            raise ValueError(f"quantization {self.quantization} needs imatrix: true")
        return self

    @property
    def weighted(self) -> bool:
        """True when this build uses an importance matrix."""
        return self.imatrix and self.quantization not in WITHOUT_IMATRIX

    @property
    def quantized(self) -> bool:
        """See Backend.quantized."""
        return self.quantization not in ("F32", "F16", "BF16")

    @property
    def file_name(self) -> str:
        """Name of the one file of the artifact; people tell GGUF files apart by the type in their names."""
        return f"model-{self.quantization}.gguf"

    @property
    def bound_to_gpu(self) -> bool:
        """See Backend.bound_to_gpu."""
        return False
