"""TensorRT-LLM: engines compiled for one GPU architecture, and quantized checkpoints for its PyTorch backend."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from evals.runner import Runner
from pipeline.backends.contract import Built, Contents, Missing
from pipeline.backends.tensorrt_llm import support
from pipeline.backends.tensorrt_llm.support import KvCache, Mode, Quantization
from pipeline.compute import Compute
from pipeline.records import Gpu, Record
from pipeline.sizing.estimate import Estimate, Load
from pipeline.sizing.model import Model


class TensorRtLlm(Record):
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
        """See Recipe.quantized."""
        return self.quantization != "bf16"

    @property
    def bound_to_gpu(self) -> bool:
        """See Recipe.bound_to_gpu: engines are compiled, checkpoints for the PyTorch backend are not."""
        return self.mode == "engine"

    @property
    def max_num_tokens(self) -> int:
        """Tokens of all prompts and answers in one pass: at least one whole prompt, TensorRT-LLM's 8192 otherwise."""
        return min(max(8192, self.max_input_tokens), self.max_batch_size * self.max_sequence_tokens)

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Look the architecture up in what TensorRT-LLM's documentation lists, and its sizes in config.json."""
        architecture = (config.get("architectures") or ["none"])[0]
        known = support.SUPPORTED[self.mode].get(architecture)
        if known is None:
            return f"TensorRT-LLM's {self.mode} mode is not documented for {architecture}"
        if self.quantization not in known:
            return f"TensorRT-LLM does not list {self.quantization} for {architecture}: {', '.join(sorted(known))}"
        if (reason := self._unfit_source(config.get("quantization_config"))) is not None:
            return reason
        heads, made_for = config.get("num_attention_heads"), config.get("max_position_embeddings")
        if heads is not None and heads % self.tensor_parallel:
            return f"{heads} attention heads cannot be shared by {self.tensor_parallel} GPUs"
        if made_for is not None and self.max_sequence_tokens > made_for:
            return f"max_sequence_tokens is {self.max_sequence_tokens}, and the model was made for {made_for}"
        return None

    def _unfit_source(self, stored: Mapping[str, Any] | None) -> str | None:
        """Say what of a quantized source cannot be taken; converters pass over it with a line in the log at most."""
        if self.source == "checkpoint":
            method = stored.get("quant_method", "unknown") if stored else None
            return f"the checkpoint is already quantized ({method}); build from the unquantized one" if stored else None
        if not stored or stored.get("quant_method") != "gptq":
            return f"{self.source} is no GPTQ artifact"
        wanted: dict[str, Any] = {"bits": 4, "desc_act": False, "checkpoint_format": "gptq"}
        for name, value in wanted.items():
            if stored.get(name, value) != value:
                return f"w4a16_gptq needs {name} {value}, and {self.source} has {stored[name]}"
        if stored.get("group_size") not in support.GROUP_SIZES:
            sizes = " or ".join(map(str, sorted(support.GROUP_SIZES)))
            return f"w4a16_gptq needs a group_size of {sizes}, and {self.source} has {stored.get('group_size')}"
        return None

    def lacks(self, gpus: Sequence[Gpu]) -> str | None:
        """See Recipe.lacks: the first `tensor_parallel` GPUs are used, and all must be of one architecture."""
        wanted = support.capabilities(self.quantization, self.kv_cache)
        used = [support.parse(gpu.compute_capability) for gpu in gpus[: self.tensor_parallel]]
        if len(used) == self.tensor_parallel and len(set(used)) == 1 and used[0] in wanted:
            return None
        many = "an NVIDIA GPU" if self.tensor_parallel == 1 else f"{self.tensor_parallel} alike NVIDIA GPUs"
        cache = f" with a KV cache in {self.kv_cache}" if self.kv_cache != "auto" else ""
        return f"needs {many} of compute capability {wanted} for {self.quantization}{cache}"

    def requirements(self) -> list[Missing]:
        """Need a container runtime for NVIDIA's image, or a Python that TensorRT-LLM can be installed into."""
        from pipeline.backends.tensorrt_llm import place

        return place.missing()

    def estimate(self, model: Model, load: Load) -> Estimate:
        """See Recipe.estimate."""
        from pipeline.backends.tensorrt_llm import sizes

        return sizes.estimate(self, model, load)

    def build(self, checkpoint: Path, corpus: Path, out: Path, compute: Compute) -> Built:
        """See Recipe.build. An engine's bytes differ from build to build: TensorRT times kernels to choose them."""
        from pipeline.backends.tensorrt_llm.build import build

        return build(self, checkpoint, corpus, out)

    def inspect(self, artifact: Path, checkpoint: Path) -> AbstractContextManager[Contents]:
        """See Recipe.inspect."""
        from pipeline.backends.tensorrt_llm.inspect import contents

        return contents(self, artifact, checkpoint)

    def open(self, artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
        """See Recipe.open: in a process where TensorRT-LLM is, which answers over a pipe."""
        from pipeline.backends.tensorrt_llm.run import runner

        return runner(self, artifact, compute)
