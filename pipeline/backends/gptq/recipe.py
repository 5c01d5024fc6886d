"""GPTQ: weights rounded one column at a time, the error of each carried over to the columns not yet rounded."""

from typing import Literal

from pydantic import Field

from pipeline.records import Record

GroupSize = Literal[-1, 32, 64, 128]


class GptqRecipe(Record):
    """A GPTQ artifact in the layout that AutoGPTQ began; transformers and vLLM load it untouched."""

    backend: Literal["gptq"]
    source: Literal["checkpoint"] = Field(default="checkpoint", alias="from")
    bits: Literal[2, 3, 4, 8]
    group_size: GroupSize = 128
    """Input columns that share a scale; -1 for one scale a row."""
    symmetric: bool = True
    """Zero lies at the middle code. The fast GPU kernels for 4 and 8 bits want it so."""
    activation_order: bool = False
    """Round the columns with the strongest activations first. More exact at 2 and 3 bits; the columns of a group are
    then no neighbours any more, which slows kernels down, and TensorRT-LLM refuses it."""
    damping: float = Field(default=0.05, gt=0, lt=1)
    """Added to the diagonal of the Hessian, as a share of its mean; GPTQModel adds more where it stays singular."""

    @property
    def quantized(self) -> bool:
        """See Backend.quantized."""
        return True

    @property
    def bound_to_gpu(self) -> bool:
        """See Backend.bound_to_gpu."""
        return False
