"""TensorRT-LLM: engines compiled for one GPU architecture, and quantized checkpoints for its PyTorch backend."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.backends.tensorrt_llm import support
from pipeline.backends.tensorrt_llm.support import KvCache, Mode, Quantization
from pipeline.records import Record


class TensorRtLlmRecipe(Record):
    """One engine, or one quantized checkpoint. Activations, and weights that are not quantized, are bfloat16."""

    backend: Literal["tensorrt_llm"]
    source: str = Field(default="checkpoint", alias="from", pattern=r"^(checkpoint|artifacts/[^/]+)$")
    """The checkpoint, or for w4a16_gptq the artifact of a gptq recipe, whose calibration then serves two runtimes."""
    mode: Mode = "engine"
    """`engine`: converted, then compiled by trtllm-build, which times kernels on the GPU; the engine runs on GPUs of
    that architecture and with this version only. `checkpoint`: weights quantized by ModelOpt, in Hugging Face's layout,
    for the PyTorch backend, which replaced engines after 1.2."""
    quantization: Quantization
    """fp8: weights and activations, one scale a tensor, calibrated. int8_wo, int4_wo: weights alone, rounded to
    nearest, one scale a row. int4_awq: weights alone, in groups, scaled by calibrated activations first. w4a16_gptq:
    the integers of a GPTQ artifact as they are. The output head is never quantized."""
    group_size: Literal[64, 128] = 128
    """At int4_awq, input columns that share a scale; w4a16_gptq has its artifact's."""
    tensor_parallel: Literal[1, 2, 4, 8] = 1
    """GPUs that share each layer."""
    max_batch_size: int = Field(default=8, ge=1)
    """Requests that advance together."""
    max_input_tokens: int = Field(default=2048, ge=2)
    """The longest prompt; windows of corpus.window_tokens must fit."""
    max_sequence_tokens: int = Field(default=4096, ge=3)
    """Prompt and answer of one request together."""
    kv_cache: KvCache = "auto"
    """What keys and values are stored in: auto is bfloat16; fp8 and int8 are calibrated with the weights."""

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        gptq = self.quantization == "w4a16_gptq"
        if gptq and self.source == "checkpoint":
            raise ValueError("w4a16_gptq needs from: artifacts/NAME, a gptq recipe's artifact")
        if not gptq and self.source != "checkpoint":
            raise ValueError(f"from: {self.source} is for w4a16_gptq; {self.quantization} is built from the checkpoint")
        if self.group_size != type(self).model_fields["group_size"].default and self.quantization != "int4_awq":
            raise ValueError(f"group_size: has no effect at {self.quantization}; remove it")
        if gptq and self.kv_cache != "auto":
            raise ValueError(
                f"kv_cache: {self.kv_cache} is calibrated with the weights, and w4a16_gptq's are as they came"
            )
        if self.quantization == "fp8" and self.kv_cache == "int8":
            raise ValueError("kv_cache: int8 does not go with fp8; set auto or fp8")
        if self.mode == "checkpoint":
            self._check_checkpoint()
        if self.max_input_tokens >= self.max_sequence_tokens:
            raise ValueError(
                "max_input_tokens must be less than max_sequence_tokens, or there is no room for an answer"
            )
        return self

    def _check_checkpoint(self) -> None:
        if self.quantization not in support.CALIBRATED:
            known = " or ".join(sorted(support.CALIBRATED))
            raise ValueError(f"mode: checkpoint takes {known}, not {self.quantization}; use mode: engine")
        if self.kv_cache == "int8":
            raise ValueError("kv_cache: int8 needs mode: engine; the PyTorch backend has auto and fp8")

    @property
    def quantized(self) -> bool:
        """See Backend.quantized."""
        return self.quantization != "bf16"

    @property
    def bound_to_gpu(self) -> bool:
        """See Backend.bound_to_gpu: engines are compiled, checkpoints for the PyTorch backend are not."""
        return self.mode == "engine"

    @property
    def max_num_tokens(self) -> int:
        """Tokens of all prompts and answers in one pass: at least one whole prompt, TensorRT-LLM's 8192 otherwise."""
        return min(max(8192, self.max_input_tokens), self.max_batch_size * self.max_sequence_tokens)
