"""What is shipped: the engine, the image, what it proved, where it went."""

from typing import Literal

from pydantic import Field

from pipeline.records.base import Record
from pipeline.records.measurements import EngineName


class Package(Record):
    """A Python package of an image."""

    name: str
    version: str
    sha256: str
    """The sha256 of the file that was installed."""


class Engine(Record):
    """The engine's image: base, runtime and Python packages, but no weights; or the reason why there is none."""

    name: EngineName
    unavailable: str | None = None
    """What this machine lacks to build it, and the command that would help; then nothing below holds anything."""
    digest: str | None = None
    """Digest of the manifest."""
    base: str | None = None
    """Name of the base image, such as docker.io/library/python:3.13-slim-trixie, or debootstrap and the release."""
    base_digest: str | None = None
    python: str | None = None
    """Version of the base's, such as 3.13, which the packages are for."""
    packages: tuple[Package, ...] = ()
    """What was installed into it, beside what the base brings."""
    builder: str | None = None
    """buildah, podman or docker, with its version."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """sha256 of everything that shapes the image: Containerfile, requirements, bases, sources."""
    bytes: int | None = None
    """All layers, as they are stored."""


class Layer(Record):
    """One layer of an image."""

    kind: Literal["engine", "weights", "code", "evidence"]
    digest: str
    bytes: int


class Image(Record):
    """The winner as an image, or the reason why there is none."""

    name: str
    """Repository name, such as assay-demo."""
    version: str
    """image.version, and what the code's repository stands at: 0.1.0+g1a2b3c4, with .dirty for uncommitted changes."""
    revision: str | None
    """The commit of this repository; None outside of one."""
    artifact: str
    artifact_digest: str
    unavailable: str | None = None
    engine: str | None = None
    """Digest of the engine's image."""
    base: str | None = None
    base_digest: str | None = None
    digest: str | None = None
    """Digest of the manifest: what is pushed, verified, signed and run."""
    bytes: int | None = None
    """Size of all layers together."""
    layers: tuple[Layer, ...] = ()
    notes: tuple[str, ...] = ()
    """What may surprise, such as a layer that is larger than some registries take."""


class Check(Record):
    """One thing that the running image was asked to prove."""

    name: str
    passed: bool
    found: str
    expected: str
    detail: str | None = None


class Verification(Record):
    """Whether the built image serves what was measured."""

    image: str | None
    """Digest of the manifest; None where there is no image."""
    checks: tuple[Check, ...] = ()
    unavailable: str | None = None
    """Why no image could be built or started here."""

    @property
    def green(self) -> bool:
        """True when the image was started and passed every check."""
        return self.unavailable is None and bool(self.checks) and all(check.passed for check in self.checks)


class Referrer(Record):
    """A document attached to an image in a registry."""

    artifact_type: str
    digest: str
    """Digest of its manifest."""


class Release(Record):
    """An image in a registry."""

    registry: str
    repository: str
    digest: str
    tag: str
    referrers: tuple[Referrer, ...]
    signed: bool
    unsigned_because: str | None = None
    bytes_sent: int
    """Bytes of blobs that were sent; manifests are a few KB."""
    bytes_skipped: int
    """Bytes of blobs that the repository held already."""
