"""GPTQ: weights rounded one column at a time, the error of each carried over to the columns not yet rounded."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from evals.runner import Runner
from pipeline.backends.contract import Built, Contents, Missing
from pipeline.compute import Compute
from pipeline.records import Gpu, Record
from pipeline.sizing.estimate import Estimate, Load
from pipeline.sizing.model import Model

REFUSED: Mapping[str, str] = {
    "phi3": "GPTQModel splits the joined gate_up_proj of phi3, and no other library loads the halves",
    "falcon": "falcon has a linear class of its own, which transformers does not replace by packed layers",
    "gpt2": "gpt2 stores its weights transposed, and transformers replaces only plain linear layers by packed ones",
}
"""Families that GPTQModel quantizes without an error, into folders that nothing but GPTQModel loads."""


GroupSize = Literal[-1, 32, 64, 128]


class Gptq(Record):
    """A GPTQ artifact in the layout that AutoGPTQ began; transformers and vLLM load it untouched."""

    backend: Literal["gptq"]
    source: Literal["checkpoint"] = Field(default="checkpoint", alias="from")
    bits: Literal[2, 3, 4, 8]
    group_size: GroupSize = 128
    """Input columns that share a scale; -1 for one scale a row."""
    symmetric: bool = True
    """Zero lies at the middle code. The fast GPU kernels for 4 and 8 bits want it so."""
    activation_order: bool = False
    """Round the columns with the strongest activations first. More exact at 2 and 3 bits; the columns of a group are
    then no neighbours any more, which slows kernels down, and TensorRT-LLM refuses it."""
    damping: float = Field(default=0.05, gt=0, lt=1)
    """Added to the diagonal of the Hessian, as a share of its mean; GPTQModel adds more where it stays singular."""

    @property
    def quantized(self) -> bool:
        """See Recipe.quantized."""
        return True

    @property
    def bound_to_gpu(self) -> bool:
        """See Recipe.bound_to_gpu."""
        return False

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Look the family up in GPTQModel's own table, and its widths in config.json."""
        from pipeline.backends.common import gptqmodel

        return REFUSED.get(config.get("model_type", "")) or gptqmodel.refusal(
            config, self.group_size, get_args(GroupSize)
        )

    def lacks(self, gpus: Sequence[Gpu]) -> str | None:
        """See Recipe.lacks: every CPU will do."""
        return None

    def requirements(self) -> list[Missing]:
        """Need GPTQModel, and optimum, through which transformers loads GPTQ."""
        from pipeline.backends.common import gptqmodel

        return gptqmodel.requirements(("gptqmodel", "optimum"))

    def estimate(self, model: Model, load: Load) -> Estimate:
        """See Recipe.estimate."""
        from pipeline.backends.common import packed_sizes

        return packed_sizes.estimate(
            model, load, method="gptq", width=self.bits, group_size=self.group_size, index=True
        )

    def build(self, checkpoint: Path, corpus: Path, out: Path, compute: Compute) -> Built:
        """See Recipe.build."""
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
        """See Recipe.inspect."""
        from pipeline.backends.common import packed_contents

        return packed_contents.inspect(
            artifact, checkpoint, bits=self.bits, group_size=self.group_size, symmetric=self.symmetric, index=True
        )

    def open(self, artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
        """See Recipe.open."""
        from pipeline.backends.gptq.run import runner

        return runner(self, artifact, compute)
