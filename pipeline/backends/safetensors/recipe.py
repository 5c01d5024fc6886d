"""The checkpoint's own weights, not quantized: what every quantization is measured against as served."""

from typing import Literal

from pydantic import Field

from pipeline.records import Record


class SafetensorsRecipe(Record):
    """A checkpoint in Hugging Face's layout; transformers and vLLM load it untouched."""

    backend: Literal["safetensors"]
    source: Literal["checkpoint"] = Field(default="checkpoint", alias="from")
    dtype: Literal["bfloat16", "float16"]
    """The dtype of all weights. Files that hold no other are kept byte for byte. float16 has 3 bits more for the
    fraction, and ends at 65504: weights beyond that are an error, activations beyond it are not noticed before they are
    NaN."""

    @property
    def quantized(self) -> bool:
        """See Backend.quantized."""
        return False

    @property
    def bound_to_gpu(self) -> bool:
        """See Backend.bound_to_gpu."""
        return False
