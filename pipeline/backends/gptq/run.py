"""Running a GPTQ artifact through transformers."""

from contextlib import AbstractContextManager
from pathlib import Path

from transformers import GPTQConfig

from evals.runner import Runner
from pipeline.backends.common import packed_linear
from pipeline.backends.gptq.recipe import GptqRecipe
from pipeline.compute import Compute


def runner(recipe: GptqRecipe, artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
    """Load with the kernel pinned: kernels differ numerically, and the automatic choice differs between machines."""
    return packed_linear.runner(artifact, compute, GPTQConfig(bits=recipe.bits, backend=kernel(recipe, compute)))


def kernel(recipe: GptqRecipe, compute: Compute) -> str:
    """Name the fastest kernel that needs no compiler and computes with the stored integers as they are.

    On CPUs torch's int4 kernel takes 4 bits in groups. For the rest GPTQModel has one that unpacks, and one that rounds
    the weights again to 8 bits a row: that one is faster, but it is not the artifact that would be scored.
    """
    packed = compute.device == "cpu" and recipe.bits == 4 and recipe.group_size > 0
    return "gptq_torch_aten" if packed else "gptq_torch"
