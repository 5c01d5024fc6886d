"""OCI image layouts: read, checked, and written so that the same content always gives the same digest.

A layout is a folder with `oci-layout`, `index.json` and `blobs/sha256/<hex>` (github.com/opencontainers/image-spec,
image-layout.md). Everything that usually makes two builds differ is fixed here: files in a layer are sorted, belong to
root and carry the time 0; JSON has sorted keys; nothing holds a date.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import Any, Protocol

from pipeline.errors import StorageError
from pipeline.records import canonical_json

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEX = "application/vnd.oci.image.index.v1+json"

PLATFORMS: Mapping[str, Mapping[str, str]] = {
    "x86_64": {"architecture": "amd64", "os": "linux"},
    "aarch64": {"architecture": "arm64", "os": "linux", "variant": "v8"},
}
"""What a configuration and an index say of an image, by what uname calls the machine that runs it."""

BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """One blob as manifests and indexes name it."""

    media_type: str
    digest: str
    """`sha256:` and 64 hex digits."""
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "Descriptor":
        """Read the JSON form."""
        return cls(
            media_type=value["mediaType"],
            digest=value["digest"],
            size=value["size"],
            annotations=value.get("annotations") or {},
            platform=value.get("platform") or {},
        )

    def json(self) -> dict[str, Any]:
        """Return the JSON form."""
        plain: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        for name, values in (("annotations", self.annotations), ("platform", self.platform)):
            if values:
                plain[name] = dict(values)
        return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of a layer."""

    path: PurePosixPath
    """Absolute, in the image."""
    content: Path | bytes
    """A file on this machine, links followed, or the bytes themselves."""
    executable: bool = False


class Writable(Protocol):
    """Where a layer goes."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout folder."""

    root: Path

    @classmethod
    def create(cls, root: Path) -> "Layout":
        """Begin an empty layout in a folder that is empty or not there."""
        (root / "blobs" / "sha256").mkdir(parents=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="utf-8")
        return cls(root)

    @classmethod
    def open(cls, root: Path) -> "Layout":
        """Open a layout; StorageError when the folder is none."""
        if not (root / "oci-layout").is_file():
            raise StorageError(f"{root}: is no OCI layout (it has no file oci-layout); run `dvc repro` to make it")
        return cls(root)

    @property
    def image(self) -> Descriptor:
        """The manifest of the one image that the layout holds."""
        found = [Descriptor.parse(one) for one in _parse(self.root / "index.json")["manifests"]]
        if len(found) != 1 or found[0].media_type != MANIFEST:
            raise StorageError(f"{self.root}: expected one image manifest in index.json, found {len(found)} entries")
        return found[0]

    @property
    def manifest(self) -> dict[str, Any]:
        """The image's manifest."""
        return self.json(self.image)

    @property
    def config(self) -> dict[str, Any]:
        """The image's configuration."""
        return self.json(Descriptor.parse(self.manifest["config"]))

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """The image's layers, lowest first."""
        return tuple(Descriptor.parse(one) for one in self.manifest["layers"])

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Everything that the manifest needs, in the order in which it is pushed: layers, then the configuration."""
        return (*self.layers, Descriptor.parse(self.manifest["config"]))

    def path(self, digest: str) -> Path:
        """Return where a blob lies, whether it is there or not."""
        algorithm, _, value = digest.partition(":")
        if algorithm != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise StorageError(f"{self.root}: {digest!r} is no sha256 digest")
        return self.root / "blobs" / algorithm / value

    def read(self, descriptor: Descriptor) -> bytes:
        """Return a small blob's bytes; StorageError when they are not what the descriptor says."""
        path = self.path(descriptor.digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be read ({error.strerror}); remove {self.root} and run again"
            ) from error
        if len(data) != descriptor.size or digest(data) != descriptor.digest:
            raise StorageError(f"{path}: was truncated or altered after it was made; remove {self.root} and run again")
        return data

    def json(self, descriptor: Descriptor) -> dict[str, Any]:
        """Return a blob that is a JSON object."""
        value = json.loads(self.read(descriptor))
        if not isinstance(value, dict):
            raise StorageError(f"{self.path(descriptor.digest)}: expected a JSON object")
        return value

    def check(self) -> None:
        """Read every blob of the image and compare it with its digest; StorageError names the first that differs."""
        for descriptor in (self.image, *self.blobs):
            path = self.path(descriptor.digest)
            if not path.is_file() or path.stat().st_size != descriptor.size or digest_file(path) != descriptor.digest:
                raise StorageError(f"{path}: is missing or damaged; remove {self.root} and run again")

    def add(self, data: bytes, media_type: str) -> Descriptor:
        """Store bytes."""
        found = Descriptor(media_type=media_type, digest=digest(data), size=len(data))
        self.path(found.digest).write_bytes(data)
        return found

    def add_json(self, value: Mapping[str, Any], media_type: str) -> Descriptor:
        """Store a JSON object in canonical form."""
        return self.add(canonical_json(value).encode(), media_type)

    def add_file(self, path: Path, media_type: str) -> Descriptor:
        """Move a file in, which must lie on the layout's file system."""
        found = Descriptor(media_type=media_type, digest=digest_file(path), size=path.stat().st_size)
        path.replace(self.path(found.digest))
        return found

    def add_layer(self, entries: Iterable[Entry], annotations: Mapping[str, str] | None = None) -> Descriptor:
        """Store files as one uncompressed layer; its digest is its diff id, too.

        Not compressed, because quantized weights do not shrink, and because every compressor's next release would
        change the digest.
        """
        with NamedTemporaryFile(dir=self.root / "blobs" / "sha256", delete=False) as file:
            partial = Path(file.name)
            try:
                hashed = _Hashed(file)
                write_tar(hashed, entries)
                partial.chmod(0o644)
                found = Descriptor(
                    media_type=LAYER, digest=hashed.digest, size=hashed.size, annotations=annotations or {}
                )
                partial.rename(self.path(found.digest))
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        return found

    def take(self, other: "Layout", descriptor: Descriptor) -> None:
        """Take over a blob of another layout, by a hard link where both lie on one file system."""
        target = self.path(descriptor.digest)
        if target.exists():
            return
        source = other.path(descriptor.digest)
        try:
            os.link(source, target)
        except FileNotFoundError as error:
            raise StorageError(f"{source}: is missing; remove {other.root} and run again") from error
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, target)

    def finish(self, config: Mapping[str, Any], layers: Sequence[Descriptor], annotations: Mapping[str, str]) -> str:
        """Write configuration, manifest and index of an image whose layers are stored; return its digest."""
        stored = self.add_json(config, CONFIG)
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": stored.json(),
            "layers": [layer.json() for layer in layers],
        }
        if annotations:
            manifest["annotations"] = dict(annotations)
        descriptor = self.add_json(manifest, MANIFEST)
        entry = descriptor.json() | {"platform": platform(config)}
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
        (self.root / "index.json").write_text(canonical_json(index), encoding="utf-8")
        return descriptor.digest


def write_tar(stream: Writable, entries: Iterable[Entry]) -> None:
    """Write files, and the folders above them, as a tar archive that depends on names and contents alone."""
    by_path = {entry.path: entry for entry in entries}
    folders = {parent for path in by_path for parent in path.parents} - {PurePosixPath("/")}
    output: Any = stream  # a stream of tar asks for `write` only
    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT, bufsize=BLOCK_BYTES) as tar:
        for path in sorted(folders | by_path.keys()):
            info = tarfile.TarInfo(path.relative_to("/").as_posix())
            if path in folders:
                assert path not in by_path, f"{path} is both a file and a folder"
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
                continue
            entry = by_path[path]
            info.mode = 0o755 if entry.executable else 0o644
            if isinstance(entry.content, bytes):
                info.size = len(entry.content)
                tar.addfile(info, io.BytesIO(entry.content))
            else:
                with entry.content.open("rb") as source:
                    info.size = os.fstat(source.fileno()).st_size
                    tar.addfile(info, source)


def platform(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what a configuration says of the machines that its image is for."""
    return {name: config[name] for name in ("architecture", "os", "variant") if name in config}


def base_annotations(name: str, digest: str) -> dict[str, str]:
    """Name the image that another one is built on, as image-spec's annotations.md does."""
    return {"org.opencontainers.image.base.name": name, "org.opencontainers.image.base.digest": digest}


def digest(data: bytes) -> str:
    """Return the digest of bytes as OCI writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_file(path: Path) -> str:
    """Return the digest of a file as OCI writes it."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


class _Hashed:
    """Passes on what is written, and knows its digest and length."""

    def __init__(self, stream: Writable) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> None:
        self._hash.update(data)
        self._stream.write(data)
        self.size += len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _parse(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: cannot be read: {error}") from error
    return value
