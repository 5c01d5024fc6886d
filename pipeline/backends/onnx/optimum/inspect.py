"""Reading a folder that Optimum's exporter made back for the structural checks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.backends.common import hf_tokenizer
from pipeline.backends.contract import Contents
from pipeline.backends.onnx import graph, sizes
from pipeline.backends.onnx.inspect import TOLERANCE, tensors
from pipeline.backends.onnx.optimum.decoder import GrowingDecoder
from pipeline.compute import Compute
from pipeline.sizing import read

if TYPE_CHECKING:
    from pipeline.backends.onnx.recipe import Onnx


@contextmanager
def contents(recipe: "Onnx", artifact: Path, checkpoint: Path) -> Iterator[Contents]:
    """Open the artifact in its runtime, so that a graph which does not load is found here, and read its tensors."""
    GrowingDecoder(artifact, Compute(threads=1))
    original = read.folder(checkpoint)
    parameters = original.parameters
    found = list(graph.weights(artifact))
    low, high = map(sum, zip(*(sizes.bits(recipe, one, tied=original.tied) for one in original.weights), strict=True))
    yield Contents(
        tensors=tensors(found),
        bits_per_weight=8 * sum(one.bytes for one in found) / parameters,
        expected_bits_per_weight=(low / parameters * (1 - TOLERANCE), high / parameters * (1 + TOLERANCE)),
        tokenizer=hf_tokenizer.describe(artifact),
    )
