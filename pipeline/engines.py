"""What is known of each engine: one entry each. Its code is the package `containers/engines/NAME`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.records import EngineName

CONTEXT_TOKENS = 4096
"""Where nobody asks for a length: some models were made for a million tokens, whose cache fits no memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What the rest of Assay has to know of an engine."""

    backends: frozenset[str]
    """Backends whose artifacts it serves."""
    takes: Callable[[Any], bool] = lambda recipe: True
    """Whether it serves a recipe of these backends."""
    needs_gpu: bool = False
    """It runs on NVIDIA GPUs only, and is told how to use them by serving.placement."""
    scores_prompts: bool = True
    """It tells log-probabilities of prompts; where it does not, greedy answers alone prove what an image serves."""
    scores_as_evaluation: bool = True
    """The code that evaluation used scores and generates; kernels of its own round otherwise."""
    toolchain: bool = False
    """Its image holds what was built of llama.cpp on this machine, whose kernels are tried where an image starts."""


ENGINES: Mapping[EngineName, Traits] = {
    "vllm": Traits(
        backends=frozenset({"gptq", "awq", "safetensors"}),
        takes=lambda recipe: recipe.backend != "gptq" or (recipe.bits in (4, 8) and recipe.symmetric),
        needs_gpu=True,
        scores_as_evaluation=False,
    ),
    "tensorrt_llm": Traits(
        backends=frozenset({"tensorrt_llm"}),
        needs_gpu=True,
        scores_prompts=False,
        scores_as_evaluation=False,
    ),
    "llama_cpp": Traits(backends=frozenset({"gguf"}), toolchain=True),
    "onnxruntime": Traits(backends=frozenset({"onnx"})),
    "transformers": Traits(backends=frozenset({"gptq", "awq", "safetensors"})),
}
"""In the order in which they are preferred: where there is a GPU, engines for it come first."""


def serving(recipe: Any) -> tuple[EngineName, ...]:
    """List the engines that serve a recipe's artifact, those that need a GPU first."""
    return tuple(name for name, one in ENGINES.items() if recipe.backend in one.backends and one.takes(recipe))
