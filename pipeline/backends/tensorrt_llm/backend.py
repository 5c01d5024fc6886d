"""TensorRT-LLM artifacts: what it takes, and what is done with them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from evals.runner import Runner
from pipeline import architectures
from pipeline.backends.contract import Built, Contents, Missing
from pipeline.backends.tensorrt_llm import support
from pipeline.backends.tensorrt_llm.recipe import TensorRtLlmRecipe
from pipeline.compute import Compute
from pipeline.records import Gpu
from pipeline.sizing.estimate import Estimate, Load
from pipeline.sizing.model import Model


class TensorRtLlm(TensorRtLlmRecipe):
    """A recipe, and what is done with it."""

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Look the architecture up in what TensorRT-LLM's documentation lists, and its sizes in config.json."""
        architecture = architectures.of(config)
        known = architectures.findings().tensorrt_llm[self.mode].get(architecture)
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
        """See Backend.lacks: the first `tensor_parallel` GPUs are used, and all must be of one architecture."""
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
        """See Backend.estimate."""
        from pipeline.backends.tensorrt_llm import sizes

        return sizes.estimate(self, model, load)

    def build(self, checkpoint: Path, corpus: Path, out: Path, compute: Compute) -> Built:
        """See Backend.build. An engine's bytes differ from build to build: TensorRT times kernels to choose them."""
        from pipeline.backends.tensorrt_llm.build import build

        return build(self, checkpoint, corpus, out)

    def inspect(self, artifact: Path, checkpoint: Path) -> AbstractContextManager[Contents]:
        """See Backend.inspect."""
        from pipeline.backends.tensorrt_llm.inspect import contents

        return contents(self, artifact, checkpoint)

    def open(self, artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
        """See Backend.open: in a process where TensorRT-LLM is, which answers over a pipe."""
        from pipeline.backends.tensorrt_llm.run import runner

        return runner(self, artifact, compute)
