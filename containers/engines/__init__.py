"""The engines' code: which engine serves an artifact here, and how it is made. `pipeline.engines` has the facts."""

from pathlib import Path

from containers.engines.contract import Engine
from pipeline import engines
from pipeline.backends import AnyRecipe
from pipeline.compute import Compute
from pipeline.errors import RequirementError, StorageError
from pipeline.params import RECIPE
from pipeline.records import FILE, Artifact, EngineName, Placement

DRAIN_SECONDS = 30.0


def choose(recipe: AnyRecipe, compute: Compute, fixed: EngineName | None = None) -> EngineName:
    """Return the engine that serves an artifact here; `fixed` is the only one that may.

    RequirementError where that one does not take the artifact, and where an engine that needs a GPU finds none.
    """
    taking = engines.serving(recipe)
    chosen = fixed or (taking[0] if compute.gpus else taking[-1])
    if chosen not in taking:
        raise RequirementError(f"engine {chosen} does not serve {recipe.backend} artifacts; {' or '.join(taking)} does")
    if engines.ENGINES[chosen].needs_gpu and not compute.gpus:
        raise RequirementError(
            f"engine {chosen} needs an NVIDIA GPU, and there is none here, or device: cpu hides it; figures measured "
            f"with {chosen} hold on such machines only"
        )
    return chosen


def engine(
    artifact: Path,
    *,
    compute: Compute,
    slots: int,
    context_tokens: int | None,
    fixed: EngineName | None = None,
    placement: Placement | None = None,
    drain_seconds: float = DRAIN_SECONDS,
) -> Engine:
    """Return the engine that serves an artifact's folder, not started yet.

    `context_tokens` is the longest prompt and answer together; None is the model's own length, at most CONTEXT_TOKENS.
    More than the model's own is cut to it: `Facts.context_tokens` says what came of it. `drain_seconds` is how long
    the gateway lets answers end. StorageError when the folder holds no artifact, RequirementError as of `choose`.
    """
    record = Artifact.load(artifact / FILE)
    if record.unavailable is not None:
        raise StorageError(f"{artifact}: there is nothing to serve: {record.unavailable}")
    recipe = RECIPE.validate_python(record.recipe)
    chosen = choose(recipe, compute, fixed)
    placement = placement or Placement()
    asked = engines.CONTEXT_TOKENS if context_tokens is None else context_tokens
    sizes = {"slots": slots, "context_tokens": asked}
    if recipe.backend == "gguf":
        from containers.engines.llama_cpp.engine import LlamaCppEngine

        # Other formats' folders hold config.json, which their engines read; llama-server goes beyond without a word.
        sizes["context_tokens"] = min(asked, record.context_tokens or asked)
        return LlamaCppEngine(artifact, artifact / recipe.file_name, compute=compute, **sizes)
    if chosen == "vllm":
        from containers.engines.vllm.engine import VllmEngine

        backend, gpus = recipe.backend, len(compute.gpus)
        return VllmEngine(artifact, backend, placement=placement, gpus=gpus, drain_seconds=drain_seconds, **sizes)
    if recipe.backend == "tensorrt_llm":
        from containers.engines.tensorrt_llm.engine import TensorRtLlmEngine

        fraction = placement.gpu_memory_fraction
        return TensorRtLlmEngine(artifact, recipe, compute=compute, gpu_memory_fraction=fraction, **sizes)
    from containers.engines.python import PythonEngine

    return PythonEngine(artifact, compute=compute, **sizes)
