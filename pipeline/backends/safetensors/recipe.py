"""The checkpoint's own weights, not quantized: what every quantization is measured against as served."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from evals.runner import Runner
from pipeline.backends.contract import Built, Contents, Missing
from pipeline.compute import Compute
from pipeline.records import Gpu, Record
from pipeline.sizing.estimate import Estimate, Load
from pipeline.sizing.model import Model


class Safetensors(Record):
    """A checkpoint in Hugging Face's layout; transformers and vLLM load it untouched."""

    backend: Literal["safetensors"]
    source: Literal["checkpoint"] = Field(default="checkpoint", alias="from")
    dtype: Literal["bfloat16", "float16"]
    """The dtype of all weights. Files that hold no other are kept byte for byte. float16 has 3 bits more for the
    fraction, and ends at 65504: weights beyond that are an error, activations beyond it are not noticed before they are
    NaN."""

    @property
    def quantized(self) -> bool:
        """See Recipe.quantized."""
        return False

    @property
    def bound_to_gpu(self) -> bool:
        """See Recipe.bound_to_gpu."""
        return False

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """See Recipe.refusal: whatever the reference can be made of."""
        return None

    def lacks(self, gpus: Sequence[Gpu]) -> str | None:
        """See Recipe.lacks: every CPU will do."""
        return None

    def requirements(self) -> list[Missing]:
        """See Recipe.requirements: nothing beside what Assay itself needs."""
        return []

    def estimate(self, model: Model, load: Load) -> Estimate:
        """See Recipe.estimate."""
        from pipeline.backends.safetensors import sizes

        return sizes.estimate(model, load)

    def build(self, checkpoint: Path, corpus: Path, out: Path, compute: Compute) -> Built:
        """See Recipe.build."""
        from pipeline.backends.safetensors.build import build

        return build(self.dtype, checkpoint, out)

    def inspect(self, artifact: Path, checkpoint: Path) -> AbstractContextManager[Contents]:
        """See Recipe.inspect."""
        from pipeline.backends.safetensors.inspect import contents

        return contents(artifact, checkpoint)

    def open(self, artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
        """See Recipe.open."""
        from pipeline.backends.safetensors.run import runner

        return runner(artifact, self.dtype, compute)
