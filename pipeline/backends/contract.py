"""The interface of every backend: a recipe, which is a frozen model of settings, with these methods.

Heavy imports (torch, gptqmodel, onnxruntime_genai, llama_cpp) are imported inside the methods, so that
params.yaml validates in a fraction of a second.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from evals.runner import Runner
from pipeline.compute import Compute
from pipeline.records import Gpu, Message
from pipeline.sizing.estimate import Estimate, Load
from pipeline.sizing.model import Model

Render = Callable[[Sequence[Message], bool], list[int]]
"""Messages, and whether to open the assistant's turn, to the ids that a model is fed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """One thing this machine lacks, and how to get it."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build tells beside the files it wrote."""

    tools: dict[str, str]
    """Name and version of each tool whose change could change the bytes."""
    notes: tuple[str, ...] = ()
    """What differs from what was asked for: tensors that fell back to another type, modules rounded to nearest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One stored tensor as the structural checks see it."""

    name: str
    values: npt.NDArray[Any]
    """Dequantized floats, or, for packed weights, the stored integers."""
    packed: bool
    """True for stored integers: those are checked for collapse (one value everywhere), not for NaN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """The artifact's own tokenizer, through its own runtime."""

    encode: Callable[[str], list[int]]
    """Text to ids without adding BOS or EOS; special tokens in the text are recognised."""
    vocabulary_size: int
    special_ids: dict[str, int | None] = field(default_factory=dict)
    """bos and eos, as the artifact declares them."""
    adds_bos: bool
    """BOS is put before plain text, unless asked not to."""
    chat_template: str | None = None
    render: Render
    """A conversation through the runtime that will serve it: BOS and all, as for a chat request. Raises
    MeasurementError with the runtime's words when it refuses."""
    longest_run: int | None = None
    """Characters without a space, line ends among them, beyond which this runtime is known to give other ids; the
    artifact's notes say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What lies in an artifact, read back through its own format, for the structural checks."""

    tensors: Iterator[Tensor]
    """Lazily, one at a time: an artifact may be larger than memory."""
    bits_per_weight: float
    """8 x bytes of all stored weights / number of the checkpoint's parameters."""
    expected_bits_per_weight: tuple[float, float]
    """The range that this recipe gives on these shapes, fallbacks included."""
    tokenizer: Tokenizer


class Backend(Protocol):
    """A recipe, and how its artifact is built, read back and run."""

    @property
    def source(self) -> str:
        """What it is built from: "checkpoint", or the folder of another artifact, as in artifacts/gptq-int4."""
        ...

    @property
    def quantized(self) -> bool:
        """False where all weights are kept as floats: what such an artifact loses is its runtime's doing."""
        ...

    @property
    def bound_to_gpu(self) -> bool:
        """True where an artifact runs on GPUs of the architecture that it was built on, and on no other."""
        ...

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Say why this backend cannot take a model with its source's config.json, or None where it can."""
        ...

    def lacks(self, gpus: Sequence[Gpu]) -> str | None:
        """Say which hardware a machine with these GPUs lacks to build, open or serve such an artifact, or None.

        As in "needs an NVIDIA GPU of compute capability 8.9 for fp8".
        """
        ...

    def requirements(self) -> list[Missing]:
        """List the software this machine lacks to build and open such an artifact; empty means ready."""
        ...

    def estimate(self, model: Model, load: Load) -> Estimate:
        """Compute what such an artifact takes on disk, in memory and while it is built, from config.json and shapes.

        In milliseconds, and by the same rules for stored bits that `inspect` expects of what was built.
        """
        ...

    def build(self, checkpoint: Path, corpus: Path, out: Path, compute: Compute) -> Built:
        """Fill the empty folder `out` from the source's checked folder; same inputs, same bytes.

        `corpus` holds `calibration.npz` (evals.windows.Windows). Nothing that differs between runs or machines
        (dates, temporary paths) may be left in `out`. Raises BuildError with the tool's last lines.
        """
        ...

    def inspect(self, artifact: Path, checkpoint: Path) -> AbstractContextManager[Contents]:
        """Read the artifact back for the structural checks."""
        ...

    def open(self, artifact: Path, compute: Compute) -> AbstractContextManager[Runner]:
        """Load the artifact in this process, to run on `compute`."""
        ...
