"""What lies outside the repository: the machine, its GPUs, what builds images, the state of sources."""

from pipeline.records.base import Record


class Gpu(Record):
    """One NVIDIA GPU, as its driver tells of it."""

    name: str
    compute_capability: str
    """Such as 9.0: engines and kernels are made for one."""
    memory_mib: int
    driver: str


class Machine(Record):
    """What latency depends on beside the artifact."""

    system: str
    architecture: str
    cpu: str
    cores: int
    """Logical CPUs this process may use."""
    memory_gib: int
    """Rounded, since what firmware and kernel keep for themselves changes with their versions."""
    python: str
    gpus: tuple[Gpu, ...] = ()

    # No kernel release and no host name: a reboot or a new container on the same machine keeps the figures.


class Hardware(Record):
    """What this machine lacks for one artifact: all that the artifact's stages depend on of the hardware."""

    name: str
    lacks: str | None
    """Such as "needs an NVIDIA GPU of compute capability 8.9 for fp8"; None where there is nothing in the way."""
    strict: bool = False
    """That is an error, rather than a row of the report that says so."""
    compute_capability: str | None = None
    """Compute capability of the GPU here, for an artifact that is bound to one; another GPU then builds it again."""


class Code(Record):
    """The code and the tools that shape what a stage writes."""

    name: str
    """The stage, and behind a hyphen the backend, where the stage is one of single artifacts."""
    modules: dict[str, str]
    """Beginnings of digests of the code of each module, comments and docstrings left out."""
    data: dict[str, str]
    """Beginnings of digests of files that the code reads, by path."""
    tools: dict[str, str]
    """Versions of distributions."""


class Source(Record):
    """The state of one source: a digest of a local file or folder, None for a remote or built-in one."""

    source: str
    digest: str | None


class Sources(Record):
    """The state of the texts."""

    calibration: Source
    evaluation: Source


class Revision(Record):
    """The state of the code that goes into an image, not of the repository around it."""

    commit: str | None
    """The last commit that touched it; None outside of a git repository."""
    dirty: bool
    """It has changes that are not committed."""


class Builders(Record):
    """What an image is built and started with here: a change brings images that could not be built before."""

    builder: str | None
    container: str | None
    base: str | None
    """ASSAY_BASE."""
    llama_cpp: str
    """Digest of what shapes the machine's llama.cpp, which GGUF's images carry."""
    debootstrap: bool
    strict: bool
