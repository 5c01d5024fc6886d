"""AWQ: channels with strong activations are scaled up before rounding, and scaled back in the operation before them."""

from typing import Literal

from pydantic import Field

from pipeline.records import Record

GroupSize = Literal[32, 64, 128]


class AwqRecipe(Record):
    """An AWQ artifact in AutoAWQ's GEMM layout; transformers and vLLM load it untouched."""

    backend: Literal["awq"]
    source: Literal["checkpoint"] = Field(default="checkpoint", alias="from")
    bits: Literal[4] = 4
    group_size: GroupSize = 128
    """Input columns that share a scale and a zero point."""
    symmetric: bool = False
    """Classic AWQ stores a zero point a group; without it 4 bits lose more."""

    @property
    def quantized(self) -> bool:
        """See Backend.quantized."""
        return True

    @property
    def bound_to_gpu(self) -> bool:
        """See Backend.bound_to_gpu."""
        return False
