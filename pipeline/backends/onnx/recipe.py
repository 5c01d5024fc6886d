"""ONNX for onnxruntime: in the folder layout of onnxruntime-genai, or exported by Optimum."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.records import Record

Algorithm = Literal["default", "k_quant"]


class OnnxRecipe(Record):
    """An ONNX folder of one precision. Activations are float32, so there is no fp16: CPUs emulate it."""

    backend: Literal["onnx"]
    source: str = Field(default="checkpoint", alias="from", pattern=r"^(checkpoint|artifacts/[^/]+)$")
    """The checkpoint, or a gptq or awq recipe's artifact: its integers, scales and zero points are taken as they are,
    so one calibration serves two runtimes, and its output head stays float."""
    exporter: Literal["genai", "optimum"] = "genai"
    """`genai`: onnxruntime-genai's model builder, with operators made for this work. `optimum`: torch's exporter by way
    of optimum-onnx, one operator for each step, for the many architectures that the builder does not know."""
    precision: Literal["fp32", "int8", "int4"]
    """By genai, int8 and int4 are weight-only: MatMulNBits with one float32 scale a block of a row, the output head
    included. The input embedding stays float32, but at int4 a tied one is shared with the head. Nothing is calibrated.
    By Optimum, int8 is dynamic: weight matrices with one scale a column, activations rounded in each pass."""
    algorithm: Algorithm | None = None
    """How blocks are rounded. `default`: symmetric, to nearest. `k_quant`: asymmetric, scale and zero point searched
    for the least squared error, as llama.cpp's K-quants do; four times slower to build, half more memory. None takes
    the one that pays: k_quant for int4, default for int8, where both are near lossless."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights that share a scale: 32 costs one bit a weight, 128 a quarter bit."""
    accuracy_level: Literal[1, 4] = 4
    """What activations are rounded to inside MatMulNBits: 4 is int8 (fast integer kernels), 1 is float32."""
    int8_parts: Literal["none", "head", "sensitive"] = "none"
    """At int4, what gets 8 bits: the output head; or the head, and the attention inputs and down projections of the
    first and last eighth of the layers and of every third one between, llama.cpp's choice in Q4_K_M. Needs k_quant."""
    quantize_embeddings: bool = False
    """At int4, also the input embedding of a model that does not tie it to the head. Needs `algorithm: default`."""

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        quantizing = ("algorithm", "block_size", "accuracy_level", "int8_parts", "quantize_embeddings")
        fields = type(self).model_fields
        idle = [name for name in quantizing if getattr(self, name) != fields[name].default]
        if self.exporter == "optimum":
            if idle:
                raise ValueError(f"{', '.join(idle)}: has no effect with exporter: optimum; remove it")
            if self.precision == "int4":
                raise ValueError("precision: int4 needs exporter: genai; optimum makes fp32 and int8")
        if self.source != "checkpoint":
            if self.exporter != "genai" or self.precision == "fp32":
                raise ValueError(f"from: {self.source} needs exporter: genai and precision: int4 or int8, its bits")
            if taken := [name for name in idle if name != "accuracy_level"]:
                raise ValueError(f"{', '.join(taken)}: has no effect with from: {self.source}; remove it")
        if self.precision == "fp32" and idle:
            raise ValueError(f"{', '.join(idle)}: has no effect at precision fp32; remove it")
        for name in ("int8_parts", "quantize_embeddings"):
            if self.precision == "int8" and name in idle:
                raise ValueError(f"{name}: has no effect at precision int8; remove it")
        if self.int8_parts != "none" and self.effective_algorithm != "k_quant":
            # The default quantizer gives the head's tensors other names than a tied embedding then looks for.
            raise ValueError(f"int8_parts: {self.int8_parts} needs algorithm: k_quant")
        if self.quantize_embeddings and self.algorithm != "default":
            # k_quant passes over Gather nodes without a word.
            raise ValueError("quantize_embeddings: true needs algorithm: default")
        return self

    @property
    def effective_algorithm(self) -> Algorithm:
        """The algorithm, with None resolved."""
        return self.algorithm or ("k_quant" if self.precision == "int4" else "default")

    @property
    def quantized(self) -> bool:
        """See Backend.quantized."""
        return self.precision != "fp32"

    @property
    def bound_to_gpu(self) -> bool:
        """See Backend.bound_to_gpu."""
        return False
