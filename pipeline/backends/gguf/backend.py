"""GGUF artifacts: what llama.cpp converts, and what is done with it."""

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from evals.runner import Runner
from pipeline import architectures, interpreter
from pipeline.backends.common import text_models
from pipeline.backends.contract import Built, Contents, Missing
from pipeline.backends.gguf.recipe import GgufRecipe
from pipeline.compute import Compute
from pipeline.errors import RequirementError
from pipeline.records import Gpu
from pipeline.sizing.estimate import Estimate, Load
from pipeline.sizing.model import Model
from pipeline.toolchains import llama_cpp


class Gguf(GgufRecipe):
    """A recipe, and what is done with it."""

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Look the architecture up in the converter's own table."""
        if (reason := text_models.refusal(config)) is not None:
            return reason
        if (architecture := architectures.of(config)) not in architectures.tools().llama_cpp:
            return f"llama.cpp's converter does not know {architecture}"
        if config.get("model_type") == "gemma3_text" and not _full_attention_in_every_sixth_layer(config):
            return "llama.cpp takes every sixth layer of gemma3_text for full attention; this config has another order"
        return None

    def lacks(self, gpus: Sequence[Gpu]) -> str | None:
        """See Backend.lacks: every CPU will do."""
        return None

    def requirements(self) -> list[Missing]:
        """Need the llama.cpp toolchain, its bindings, and the package that reads GGUF files back."""
        missing = []
        try:
            llama_cpp.find()
        except RequirementError as error:
            missing.append(Missing(what=str(error).partition(";")[0], remedy=interpreter.setup()))
        for module, package in (("llama_cpp", "the llama.cpp bindings"), ("gguf", "the Python package gguf")):
            if importlib.util.find_spec(module) is None:
                missing.append(Missing(what=f"{package} cannot be imported", remedy=interpreter.setup()))
        return missing

    def estimate(self, model: Model, load: Load) -> Estimate:
        """See Backend.estimate."""
        from pipeline.backends.gguf import sizes

        return sizes.estimate(self, model, load)

    def build(self, checkpoint: Path, corpus: Path, out: Path, compute: Compute) -> Built:
        """See Backend.build."""
        from pipeline.backends.gguf.build import build

        return build(self, checkpoint, corpus, out, compute)

    def inspect(self, artifact: Path, checkpoint: Path) -> AbstractContextManager[Contents]:
        """See Backend.inspect."""
        from pipeline.backends.gguf.inspect import contents

        return contents(self, artifact, checkpoint)

    def open(self, artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
        """See Backend.open."""
        from pipeline.backends.gguf.run import runner

        return runner(artifact / self.file_name, compute)


def _full_attention_in_every_sixth_layer(config: Mapping[str, Any]) -> bool:
    types = config.get("layer_types")
    if types is None:
        return bool(config.get("sliding_window_pattern", 6) == 6)
    return all((kind == "full_attention") == (layer % 6 == 5) for layer, kind in enumerate(types))
