"""GGUF: the single-file format of llama.cpp and of what embeds it (Ollama, LM Studio)."""

import ast
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from evals.runner import Runner
from pipeline.backends.contract import Built, Contents, Missing
from pipeline.compute import Compute
from pipeline.errors import RequirementError
from pipeline.records import Gpu, Record
from pipeline.sizing.estimate import Estimate, Load
from pipeline.sizing.model import Model
from pipeline.toolchains import llama_cpp

Quantization = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S",
    "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
]  # fmt: skip
"""Names that llama-quantize takes; a K type or an IQ type mixes several tensor types."""

WITHOUT_IMATRIX = frozenset({"F32", "F16", "BF16", "Q8_0"})
"""At 8 bits and more, rounding to nearest is as good as weighted rounding, and llama.cpp does not weight it."""

IMATRIX_NEEDED = frozenset({"IQ3_XXS", "IQ3_XS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"})
"""llama-quantize refuses these without an importance matrix."""


class Gguf(Record):
    """A GGUF file of one quantization type."""

    backend: Literal["gguf"]
    source: Literal["checkpoint"] = Field(default="checkpoint", alias="from")
    quantization: Quantization
    imatrix: bool = True
    """Weight the rounding error of each column by its mean squared activation on the calibration windows; used for
    types under 8 bits only."""

    @model_validator(mode="after")
    def _check_imatrix(self) -> Self:
        if self.quantization in IMATRIX_NEEDED and not self.imatrix:
            raise ValueError(f"quantization {self.quantization} needs imatrix: true")
        return self

    @property
    def weighted(self) -> bool:
        """True when this build uses an importance matrix."""
        return self.imatrix and self.quantization not in WITHOUT_IMATRIX

    @property
    def quantized(self) -> bool:
        """See Recipe.quantized."""
        return self.quantization not in ("F32", "F16", "BF16")

    @property
    def file_name(self) -> str:
        """Name of the one file of the artifact; people tell GGUF files apart by the type in their names."""
        return f"model-{self.quantization}.gguf"

    @property
    def bound_to_gpu(self) -> bool:
        """See Recipe.bound_to_gpu."""
        return False

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Look the architecture up in the converter's own table; no answer while the toolchain is not built."""
        (architecture, *_) = config.get("architectures") or ["none"]
        for part in ("vision_config", "audio_config"):
            if part in config:
                return f"{architecture} has a {part}; only text models are converted"
        if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
            return f"{architecture} is not a causal language model"
        try:
            converter = llama_cpp.find().converter
        except RequirementError:
            return None  # `requirements` says so, and how to get it
        if architecture not in _architectures(converter.parent / "conversion" / "__init__.py"):
            return f"llama.cpp's converter does not know {architecture}"
        if config.get("model_type") == "gemma3_text" and not _full_attention_in_every_sixth_layer(config):
            return "llama.cpp takes every sixth layer of gemma3_text for full attention; this config has another order"
        return None

    def lacks(self, gpus: Sequence[Gpu]) -> str | None:
        """See Recipe.lacks: every CPU will do."""
        return None

    def requirements(self) -> list[Missing]:
        """Need the llama.cpp toolchain, its bindings, and the package that reads GGUF files back."""
        missing = []
        try:
            llama_cpp.find()
        except RequirementError as error:
            missing.append(Missing(what=str(error).partition(";")[0], remedy="make setup"))
        for module, package in (("llama_cpp", "the llama.cpp bindings"), ("gguf", "the Python package gguf")):
            if importlib.util.find_spec(module) is None:
                missing.append(Missing(what=f"{package} cannot be imported", remedy="make setup"))
        return missing

    def estimate(self, model: Model, load: Load) -> Estimate:
        """See Recipe.estimate."""
        from pipeline.backends.gguf import sizes

        return sizes.estimate(self, model, load)

    def build(self, checkpoint: Path, corpus: Path, out: Path, compute: Compute) -> Built:
        """See Recipe.build."""
        from pipeline.backends.gguf.build import build

        return build(self, checkpoint, corpus, out, compute)

    def inspect(self, artifact: Path, checkpoint: Path) -> AbstractContextManager[Contents]:
        """See Recipe.inspect."""
        from pipeline.backends.gguf.inspect import contents

        return contents(self, artifact, checkpoint)

    def open(self, artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
        """See Recipe.open."""
        from pipeline.backends.gguf.run import runner

        return runner(artifact / self.file_name, compute)


def _full_attention_in_every_sixth_layer(config: Mapping[str, Any]) -> bool:
    types = config.get("layer_types")
    if types is None:
        return bool(config.get("sliding_window_pattern", 6) == 6)
    return all((kind == "full_attention") == (layer % 6 == 5) for layer, kind in enumerate(types))


@functools.cache
def _architectures(table: Path) -> frozenset[str]:
    """Read the keys of TEXT_MODEL_MAP out of the converter's source: importing it would import torch."""
    for statement in ast.parse(table.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "TEXT_MODEL_MAP":
            assert statement.value is not None
            return frozenset(ast.literal_eval(statement.value))
    raise RequirementError(f"{table}: has no TEXT_MODEL_MAP; this llama.cpp is not the pinned one, run `make setup`")
