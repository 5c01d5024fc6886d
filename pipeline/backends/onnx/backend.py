"""ONNX artifacts: what each exporter takes, and what is done with them."""

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from evals.runner import Runner
from pipeline import architectures, interpreter
from pipeline.backends.common import text_models
from pipeline.backends.contract import Built, Contents, Missing
from pipeline.backends.onnx.optimum import support
from pipeline.backends.onnx.recipe import OnnxRecipe
from pipeline.compute import Compute
from pipeline.records import Gpu
from pipeline.sizing.estimate import Estimate, Load
from pipeline.sizing.model import Model

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Block sizes that the operator MatMulNBits knows."""

ACTIVATIONS = frozenset(
    {
        "silu",
        "swish",
        "swiglu",
        "gelu_new",
        "gelu_fast",
        "gelu_pytorch_tanh",
        "gelu",
        "gegelu",
        "geglu",
        "relu",
        "relu2",
    }
)
"""What `make_activation` of the builder has operators for."""


class Onnx(OnnxRecipe):
    """A recipe, and what is done with it."""

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Look the architecture up in the exporter's own table, then its options."""
        if (reason := text_models.refusal(config)) is not None:
            return reason
        if self.exporter == "optimum":
            return support.refusal(config)
        architecture, known = architectures.of(config), architectures.tools().genai
        if architecture not in known:
            return f"onnxruntime-genai's model builder does not know {architecture}"
        if known[architecture] != "cpu":
            return f"onnxruntime-genai builds {architecture} for {known[architecture]} only"
        return self._unfit_source(config.get("quantization_config") or {}) or _unsupported_option(architecture, config)

    def _unfit_source(self, stored: Mapping[str, Any]) -> str | None:
        """Say what of a quantized folder the builder cannot take as it is; it would fail late, or pass over it."""
        method = stored.get("quant_method")
        if self.source == "checkpoint":
            quantized = f"the checkpoint is already quantized ({method}); build from the unquantized one"
            return quantized if stored else None
        if method not in ("gptq", "awq"):
            return f"{self.source} is no GPTQ or AWQ artifact"
        if stored.get("bits") != (bits := 4 if self.precision == "int4" else 8):
            return f"precision {self.precision} needs {bits} bits, and {self.source} has {stored.get('bits')}"
        if stored.get("desc_act"):
            return f"{self.source} has activation order, and MatMulNBits has the columns of a group side by side"
        if stored.get("group_size") not in BLOCK_SIZES:
            return f"MatMulNBits has no blocks of {stored.get('group_size')} weights, the group size of {self.source}"
        return None

    def lacks(self, gpus: Sequence[Gpu]) -> str | None:
        """See Backend.lacks: every CPU will do."""
        return None

    def requirements(self) -> list[Missing]:
        """Need the runtime, and what the exporter's own half here imports; Optimum's environment is made on demand."""
        packages = {
            "onnxruntime_genai": "onnxruntime-genai",
            "onnxruntime": "onnxruntime",
            "onnx": "onnx",
            "onnx_ir": "onnx-ir",
        }
        return [
            Missing(what=f"the Python package {package} cannot be imported", remedy=interpreter.setup())
            for module, package in packages.items()
            if (self.exporter == "genai" or module in ("onnxruntime", "onnx"))
            and importlib.util.find_spec(module) is None
        ]

    def estimate(self, model: Model, load: Load) -> Estimate:
        """See Backend.estimate."""
        from pipeline.backends.onnx import sizes

        return sizes.estimate(self, model, load)

    def build(self, checkpoint: Path, corpus: Path, out: Path, compute: Compute) -> Built:
        """See Backend.build. `corpus` is not read: nothing is calibrated here."""
        if self.exporter == "optimum":
            from pipeline.backends.onnx.optimum.build import build as optimum

            return optimum(self, checkpoint, out, compute)
        from pipeline.backends.onnx.build import build

        return build(self, checkpoint, out)

    def inspect(self, artifact: Path, checkpoint: Path) -> AbstractContextManager[Contents]:
        """See Backend.inspect."""
        from pipeline.backends.onnx.inspect import contents

        return contents(self, artifact, checkpoint)

    def open(self, artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
        """See Backend.open."""
        from pipeline.backends.onnx.decoder import Decoder
        from pipeline.backends.onnx.optimum.decoder import GrowingDecoder
        from pipeline.backends.onnx.run import runner

        return runner(GrowingDecoder if self.exporter == "optimum" else Decoder, artifact, compute)


def _unsupported_option(architecture: str, config: Mapping[str, Any]) -> str | None:
    """Name the setting of a known architecture that the builder refuses, or would pass over."""
    found = architectures.findings().onnx
    if (reason := found.refused.get(architecture)) is not None:
        return reason
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if activation not in ACTIVATIONS:
        return f"onnxruntime-genai's model builder has no operator for the activation {activation}"
    if config.get("vocab_size") in _inner_widths(architecture, config):
        # The builder takes any linear layer with as many outputs as the vocabulary for the output head.
        return (
            f"onnxruntime-genai's model builder mistakes an inner layer of {config['vocab_size']} outputs for the head"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in rope.values()):
        return f"onnxruntime-genai's model builder reads one RoPE for all layers, {architecture} has one per layer type"
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in found.rope.get(architecture, found.rope["default"]):
        return f"onnxruntime-genai's model builder has no {kind} RoPE for {architecture}"
    mixture = config.get("num_local_experts") or "mamba" in (config.get("layer_types") or ())
    if architecture == "GraniteMoeHybridForCausalLM" and mixture:
        # Its builder exports attention and the shared MLP of every layer, whatever else the layers hold.
        return f"onnxruntime-genai's model builder leaves out the experts and Mamba layers of {architecture}"
    return None


def _inner_widths(architecture: str, config: Mapping[str, Any]) -> set[int]:
    """Return the numbers of outputs that linear layers inside the model have; Phi-3 joins gate with up and q, k, v."""
    hidden, inner, heads = (config.get(key) or 0 for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    head = config.get("head_dim") or (hidden // heads if heads else 0)
    pairs = config.get("num_key_value_heads") or heads
    joined = {2 * inner, (heads + 2 * pairs) * head} if architecture.startswith("Phi3") else set()
    return ({hidden, inner, heads * head, pairs * head} | joined) - {0}
