"""Reading an artifact back, as far as what lies in its folder tells."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.backends.common import hf_tokenizer, stored
from pipeline.backends.contract import Contents
from pipeline.backends.tensorrt_llm import commands, target, tensors, written
from pipeline.backends.tensorrt_llm.recipe import TensorRtLlmRecipe


@contextmanager
def contents(recipe: TensorRtLlmRecipe, artifact: Path, checkpoint: Path) -> Iterator[Contents]:
    """Open an artifact for the structural checks.

    Weights inside an engine cannot be read; those that went into it were checked before it was compiled. What the
    configuration says is checked again here. BuildError when it is not what the recipe asks for.
    """
    engine = artifact / commands.ENGINE
    if recipe.mode == "engine":
        written.require_engine(recipe, engine, target.load(artifact).tensorrt_llm)
        read = tensors.engine_pieces(engine)
        size = sum(path.stat().st_size for path in engine.iterdir() if path.name != "config.json")
    else:
        written.require_quantized(recipe, artifact)
        read = tensors.stored_tensors(recipe, artifact)
        size = sum(tensor.bytes for tensor in stored.tensors(artifact))
    parameters = sum(tensor.parameters for tensor in stored.tensors(checkpoint))
    yield Contents(
        tensors=read,
        bits_per_weight=8 * size / parameters,
        expected_bits_per_weight=tensors.expected_bits(recipe, checkpoint),
        tokenizer=hf_tokenizer.describe(artifact),
    )
