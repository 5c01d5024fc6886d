"""What was built, and how that went."""

from pydantic import Field

from pipeline.records.base import Failure, File, Record


class Artifact(Record):
    """A built artifact, or the reason why there is none."""

    name: str
    recipe: dict[str, str | int | float | bool | None]
    checkpoint: str
    """Digest."""
    source: str | None = None
    """Digest of the artifact that this one was built from; None for those built from the checkpoint."""
    calibration: str
    """sha256 of the calibration windows."""
    unavailable: str | None = None
    """Why this artifact cannot exist, for this checkpoint or on this machine; then nothing below holds anything."""
    failure: Failure | None = None
    """With `unavailable`: its build, or that of the artifact it is built from, went wrong."""
    tools: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    parameters: int | None = None
    context_tokens: int | None = None
    """Longest sequence that the checkpoint was made for."""
    bits_per_weight: float | None = None
    chat_template_agreement: float | None = None
    """Share of the vocabulary's conversations that the artifact's own runtime turns into the same ids; None where the
    checkpoint has no chat template. A note names the first difference."""
    bytes: int | None = None
    """All files together: what a download costs."""
    files: tuple[File, ...] = ()
    digest: str
    """Over the files, or over the reason."""


class Predicted(Record):
    """What was computed for an artifact before it was built, from config.json and the weights' headers."""

    bytes: int | None = None
    """All files together."""
    serving_bytes: int | None = None
    """Main memory of gateway and engine under the load of params.serving: as Served.peak_rss_bytes. None on GPUs."""
    serving_gpu_bytes: int | None = None
    """Memory of all GPUs together, as in Served.peak_gpu_bytes; None without GPUs."""
    build_bytes: int | None = None
    """Peak memory of the build's largest process, nothing being left of a sibling's build: at most as
    Build.peak_rss_bytes."""


class Build(Record):
    """Provenance of one artifact's build: what differs between machines and runs."""

    artifact: str
    seconds: float | None
    peak_rss_bytes: int | None
    """Largest resident set of any one process of the build."""
    device: str | None = None
    """What it was given to calibrate on, "cpu" or a GPU: where sums are rounded differently, bytes may differ too."""
    peak_gpu_bytes: int | None = None
    """Memory taken on all GPUs together, by every process; None where none was used."""
    tools: dict[str, str] = Field(default_factory=dict)
    """As in the artifact's record, and so are the notes: the report tells them, and needs no artifact for it."""
    notes: tuple[str, ...] = ()
    predicted: Predicted | None = None
    """None where nothing could be: a checkpoint or recipe that the arithmetic does not know."""
