"""Weights in safetensors files as the structural checks see them, and how many bits they should take."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.backends.common import stored
from pipeline.backends.contract import Tensor
from pipeline.backends.tensorrt_llm import sizes
from pipeline.backends.tensorrt_llm.recipe import TensorRtLlmRecipe
from pipeline.sizing import read

PIECE_BYTES = 64 * 2**20
"""Bytes of an engine's file that are looked at: nothing of its layout is documented, but a file of one value is
broken."""

DISGUISED = re.compile(r"\.layers\.\d+\.(attention|mlp)\..*\.weight$")


def save(path: Path, ids: npt.NDArray[np.int32]) -> None:
    """Write ids as .npy, which needs nothing but numpy to be read."""
    np.save(path, ids, allow_pickle=False)


def stored_tensors(recipe: TensorRtLlmRecipe, folder: Path) -> Iterator[Tensor]:
    """Yield what a fault would show in. TensorRT-LLM types packed groups of integers as bfloat16."""
    import torch
    from safetensors import safe_open

    disguised = DISGUISED if recipe.mode == "engine" and recipe.quantization in sizes.GROUPED else None

    for path in stored.files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping: it has no iterator)
                values: Any = file.get_tensor(name)
                if disguised is not None and disguised.search(name):
                    values = values.view(torch.uint8)
                packed = not values.dtype.is_floating_point
                yield Tensor(name=name, values=(values if packed else values.float()).numpy(), packed=packed)


def engine_pieces(folder: Path) -> Iterator[Tensor]:
    """Yield the beginning of each engine file, as bytes."""
    for path in sorted(folder.glob("*.engine")):
        with path.open("rb") as file:
            piece = np.frombuffer(file.read(PIECE_BYTES), np.uint8)
        yield Tensor(name=path.name, values=piece.reshape(1, -1), packed=True)


def expected_bits(recipe: TensorRtLlmRecipe, checkpoint: Path) -> tuple[float, float]:
    """Return the range of bits a weight that this recipe gives on the checkpoint's shapes.

    At most: an embedding and a head of their own although the checkpoint ties them, and, for an engine, what else is in
    it. At least: the weights alone.
    """
    model = read.folder(checkpoint)
    parameters = model.parameters
    least, most = map(sum, zip(*(sizes.bits(recipe, weight) for weight in model.weights), strict=True))
    if recipe.mode == "engine":
        most += 8 * sizes.PLAN_BYTES * recipe.tensor_parallel
    return 0.98 * least / parameters, 1.1 * most / parameters
