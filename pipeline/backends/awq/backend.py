"""AWQ artifacts by GPTQModel: what it takes, and what is done with them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_args

from evals.runner import Runner
from pipeline import architectures
from pipeline.backends.awq.recipe import AwqRecipe, GroupSize
from pipeline.backends.contract import Built, Contents, Missing
from pipeline.compute import Compute
from pipeline.records import Gpu
from pipeline.sizing.estimate import Estimate, Load
from pipeline.sizing.model import Model


class Awq(AwqRecipe):
    """A recipe, and what is done with it."""

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Take only families for which the folding of scales is known to be right."""
        from pipeline.backends.common import gptqmodel

        if config.get("model_type") not in (known := architectures.findings().awq.folds):
            return (
                "AWQ folds its scales into the norm before each layer, and that was found right only for "
                f"{', '.join(sorted(known))}"
            )
        return gptqmodel.refusal(config, self.group_size, get_args(GroupSize))

    def lacks(self, gpus: Sequence[Gpu]) -> str | None:
        """See Backend.lacks: every CPU will do."""
        return None

    def requirements(self) -> list[Missing]:
        """Need GPTQModel, which also holds the layers that transformers loads AWQ into, through accelerate."""
        from pipeline.backends.common import gptqmodel

        return gptqmodel.requirements(("gptqmodel", "accelerate"))

    def estimate(self, model: Model, load: Load) -> Estimate:
        """See Backend.estimate."""
        from pipeline.backends.common import packed_sizes

        return packed_sizes.estimate(
            model, load, method="awq", width=self.bits, group_size=self.group_size, index=False
        )

    def build(self, checkpoint: Path, corpus: Path, out: Path, compute: Compute) -> Built:
        """See Backend.build."""
        from pipeline.backends.common import gptqmodel

        return gptqmodel.build(
            method="awq",
            bits=self.bits,
            group_size=self.group_size,
            group_sizes=get_args(GroupSize),
            checkpoint=checkpoint,
            corpus=corpus,
            out=out,
            symmetric=self.symmetric,
            compute=compute,
        )

    def inspect(self, artifact: Path, checkpoint: Path) -> AbstractContextManager[Contents]:
        """See Backend.inspect."""
        from pipeline.backends.common import packed_contents

        return packed_contents.inspect(
            artifact, checkpoint, bits=self.bits, group_size=self.group_size, symmetric=self.symmetric, index=False
        )

    def open(self, artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
        """See Backend.open."""
        from pipeline.backends.awq.run import runner

        return runner(artifact, compute)
