"""GPTQ artifacts by GPTQModel: what it takes, and what is done with them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_args

from evals.runner import Runner
from pipeline import architectures
from pipeline.backends.contract import Built, Contents, Missing
from pipeline.backends.gptq.recipe import GptqRecipe, GroupSize
from pipeline.compute import Compute
from pipeline.records import Gpu
from pipeline.sizing.estimate import Estimate, Load
from pipeline.sizing.model import Model


class Gptq(GptqRecipe):
    """A recipe, and what is done with it."""

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Look the family up in GPTQModel's own table, and its widths in config.json."""
        from pipeline.backends.common import gptqmodel

        refused = architectures.findings().gptq.refused.get(config.get("model_type", ""))
        return refused or gptqmodel.refusal(config, self.group_size, get_args(GroupSize))

    def lacks(self, gpus: Sequence[Gpu]) -> str | None:
        """See Backend.lacks: every CPU will do."""
        return None

    def requirements(self) -> list[Missing]:
        """Need GPTQModel, and optimum, through which transformers loads GPTQ."""
        from pipeline.backends.common import gptqmodel

        return gptqmodel.requirements(("gptqmodel", "optimum"))

    def estimate(self, model: Model, load: Load) -> Estimate:
        """See Backend.estimate."""
        from pipeline.backends.common import packed_sizes

        return packed_sizes.estimate(
            model, load, method="gptq", width=self.bits, group_size=self.group_size, index=True
        )

    def build(self, checkpoint: Path, corpus: Path, out: Path, compute: Compute) -> Built:
        """See Backend.build."""
        from pipeline.backends.common import gptqmodel

        return gptqmodel.build(
            method="gptq",
            bits=self.bits,
            group_size=self.group_size,
            group_sizes=get_args(GroupSize),
            checkpoint=checkpoint,
            corpus=corpus,
            out=out,
            symmetric=self.symmetric,
            activation_order=self.activation_order,
            damping=self.damping,
            compute=compute,
        )

    def inspect(self, artifact: Path, checkpoint: Path) -> AbstractContextManager[Contents]:
        """See Backend.inspect."""
        from pipeline.backends.common import packed_contents

        return packed_contents.inspect(
            artifact, checkpoint, bits=self.bits, group_size=self.group_size, symmetric=self.symmetric, index=True
        )

    def open(self, artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
        """See Backend.open."""
        from pipeline.backends.gptq.run import runner

        return runner(self, artifact, compute)
