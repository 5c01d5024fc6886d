"""Artifacts of the demo checkpoint, built by the backends themselves, for tests that serve them."""

from pathlib import Path

import pytest

from pipeline import digests
from pipeline.backends.gguf.backend import Gguf
from pipeline.compute import Compute
from pipeline.errors import RequirementError
from pipeline.records import FILE, Artifact
from pipeline.toolchains import llama_cpp

CHECKPOINT = Path(__file__).parents[2] / "models" / "demo"
END_IDS = (2,)
"""The ends of sequence of its generation_config.json."""


def gguf(folder: Path, recipe: Gguf) -> Path:
    """Build a GGUF artifact with its record; the test is skipped where llama.cpp is not built."""
    try:
        llama_cpp.find()
    except RequirementError as error:
        pytest.skip(str(error))
    out = folder / recipe.quantization.lower()
    out.mkdir()
    recipe.build(CHECKPOINT, folder, out, Compute(threads=2))
    record = Artifact(
        name="demo", recipe=recipe.model_dump(), checkpoint="c", calibration="e", digest="a" * 64,
        files=digests.list_files(out),
    )  # fmt: skip
    record.save(out / FILE)
    return out
