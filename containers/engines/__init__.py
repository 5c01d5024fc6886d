"""The engines: a closed registry, one kind for each kind of artifact."""

from pathlib import Path

from containers.engines.contract import Engine
from pipeline.compute import Compute
from pipeline.errors import StorageError
from pipeline.params import RECIPE
from pipeline.records import FILE, Artifact

CONTEXT_TOKENS = 4096
"""Where nobody asks for a length: some models were made for a million tokens, whose cache fits no memory."""


def engine(artifact: Path, *, compute: Compute, slots: int, context_tokens: int | None) -> Engine:
    """Return the engine that serves an artifact's folder, not started yet.

    `context_tokens` is the longest prompt and answer together; None is the model's own length, at most CONTEXT_TOKENS.
    More than the model's own is cut to it: `Facts.context_tokens` says what came of it. StorageError when the folder
    holds no artifact.
    """
    from containers.engines.llama_cpp.engine import LlamaCppEngine
    from containers.engines.python import PythonEngine

    record = Artifact.load(artifact / FILE)
    if record.unavailable is not None:
        raise StorageError(f"{artifact}: there is nothing to serve: {record.unavailable}")
    recipe = RECIPE.validate_python(record.recipe)
    sizes = {
        "slots": slots,
        "context_tokens": CONTEXT_TOKENS if context_tokens is None else context_tokens,
    }
    if recipe.backend == "gguf":
        return LlamaCppEngine(artifact, artifact / recipe.file_name, compute=compute, **sizes)
    return PythonEngine(artifact, compute=compute, **sizes)
