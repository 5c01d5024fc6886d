"""Unquantized artifacts, and what is done with them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from evals.runner import Runner
from pipeline.backends.contract import Built, Contents, Missing
from pipeline.backends.safetensors.recipe import SafetensorsRecipe
from pipeline.compute import Compute
from pipeline.records import Gpu
from pipeline.sizing.estimate import Estimate, Load
from pipeline.sizing.model import Model


class Safetensors(SafetensorsRecipe):
    """A recipe, and what is done with it."""

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """See Backend.refusal: whatever the reference can be made of."""
        return None

    def lacks(self, gpus: Sequence[Gpu]) -> str | None:
        """See Backend.lacks: every CPU will do."""
        return None

    def requirements(self) -> list[Missing]:
        """See Backend.requirements: nothing beside what Assay itself needs."""
        return []

    def estimate(self, model: Model, load: Load) -> Estimate:
        """See Backend.estimate."""
        from pipeline.backends.safetensors import sizes

        return sizes.estimate(model, load)

    def build(self, checkpoint: Path, corpus: Path, out: Path, compute: Compute) -> Built:
        """See Backend.build."""
        from pipeline.backends.safetensors.build import build

        return build(self.dtype, checkpoint, out)

    def inspect(self, artifact: Path, checkpoint: Path) -> AbstractContextManager[Contents]:
        """See Backend.inspect."""
        from pipeline.backends.safetensors.inspect import contents

        return contents(artifact, checkpoint)

    def open(self, artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
        """See Backend.open."""
        from pipeline.backends.safetensors.run import runner

        return runner(artifact, self.dtype, compute)
