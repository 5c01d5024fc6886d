"""`assay release`: the verified image into a registry, its tag last."""

import logging
from collections.abc import Mapping
from typing import Any

from pipeline import digests, paths
from pipeline.commands import signing
from pipeline.errors import RegistryError, StorageError
from pipeline.oci import Descriptor, Layout
from pipeline.progress import bytes_bar
from pipeline.records import Referrer, Release, Verification
from pipeline.registry.address import Address, check_tag
from pipeline.registry.client import Repository
from pipeline.registry.session import Session

VERSION = "org.opencontainers.image.version"

DOCUMENTS = (
    (paths.IMAGE / "sbom.cdx.json", "application/vnd.cyclonedx+json"),
    (paths.IMAGE / "provenance.json", "application/vnd.in-toto+json"),
    (paths.REPORT, "text/markdown"),
    (paths.PAGE, "text/html"),
)
"""What is attached to the image, and the media types that tools look for."""

log = logging.getLogger(__name__)


def release(registry: str, version: str | None = None, key: str | None = None) -> Release:
    """Push image/layout by digest, attach SBOM, provenance and report, sign, tag; write release.json.

    Whoever pulls the tag finds everything: it is put when all else is there, so that a run that breaks off leaves
    blobs, which the next run finds, and no tag. A version is for good: RegistryError when it names another digest.
    Raises RegistryError, too, for an image that `verification` did not find to be what was measured.
    """
    address = Address.parse(registry)
    verification = Verification.load(paths.VERIFICATION)
    if verification.unavailable is not None:
        raise RegistryError(f"there is no verified image to release: {verification.unavailable}")
    layout = Layout.open(paths.IMAGE / "layout")
    image = layout.image
    _require_green(verification, image.digest)
    tag = check_tag(version or _version(layout))
    _check(layout)
    documents = [(path, path.read_bytes(), media_type) for path, media_type in DOCUMENTS]
    with Session(address) as session:
        repository = Repository(session)
        there = repository.manifest(tag)
        if there is not None and there.descriptor.digest != image.digest:
            raise RegistryError(
                f"{address}:{tag} is {there.descriptor.digest}, this image is {image.digest}: a released version does "
                "not change; give this one another version (image.version in params.yaml, or --tag)"
            )
        _push(repository, layout)
        repository.push_manifest(layout.read(image), image.media_type)
        referrers = [
            Referrer(artifact_type=kind, digest=repository.attach(data, kind, path.name, image).digest)
            for path, data, kind in documents
        ]
        unsigned_because = _sign(address, image, tag, key, again=there is not None)
        if there is None:
            repository.push_manifest(layout.read(image), image.media_type, tag)
    record = Release(
        registry=address.host,
        repository=address.repository,
        digest=image.digest,
        tag=tag,
        referrers=tuple(referrers),
        signed=unsigned_because is None,
        unsigned_because=unsigned_because,
        bytes_sent=repository.traffic.sent,
        bytes_skipped=repository.traffic.skipped,
    )
    record.save(paths.RELEASE)
    return record


def _require_green(verification: Verification, digest: str) -> None:
    if verification.image != digest:
        raise RegistryError(
            f"{paths.VERIFICATION} is about {verification.image}, the image is {digest}; run `dvc repro`, then "
            "release again"
        )
    if not verification.green:
        failed = "".join(
            f"\n  {check.name}: {check.found}, expected {check.expected}"
            for check in verification.checks
            if not check.passed
        )
        raise RegistryError(
            f"the image does not serve what was measured; nothing was pushed{failed or ': no check ran'}"
        )


def _version(layout: Layout) -> str:
    version = version_tag(layout.manifest)
    if version is None:
        raise RegistryError(f"{layout.root}: the image has no annotation {VERSION}; name a version with --tag")
    return version


def version_tag(manifest: Mapping[str, Any]) -> str | None:
    """Return the tag of an image's own version, or None; a tag has no +, which a version may have."""
    version = (manifest.get("annotations") or {}).get(VERSION)
    return str(version).replace("+", "-") if version else None


def _check(layout: Layout) -> None:
    """Hold every blob against its digest before anything is sent; unchanged files are not read a second time."""
    for blob in (layout.image, *layout.blobs):
        path = layout.path(blob.digest)
        if not path.is_file() or f"sha256:{digests.of_file_memoised(path)}" != blob.digest:
            raise StorageError(f"{path}: is missing or damaged; remove {layout.root} and run `dvc repro`")
    for path, _ in DOCUMENTS:
        if not path.is_file():
            raise StorageError(f"{path}: is missing; run `dvc repro`")


def _push(repository: Repository, layout: Layout) -> None:
    """Push the layers in the image's order, then the configuration."""
    with bytes_bar("push", sum(blob.size for blob in layout.blobs)) as bar:
        for blob in layout.blobs:
            repository.push_blob(layout.path(blob.digest), blob, bar.update)


def _sign(address: Address, image: Descriptor, tag: str, key: str | None, *, again: bool) -> str | None:
    """Sign, unless an earlier release of this digest under this tag did; return why there is no signature."""
    if again and paths.RELEASE.exists():
        earlier = Release.load(paths.RELEASE)
        same = (earlier.registry, earlier.repository, earlier.digest, earlier.tag)
        if earlier.signed and same == (address.host, address.repository, image.digest, tag):
            return None
    reason = signing.sign(address, image.digest, key)
    if reason is not None:
        log.warning("the image is not signed: %s", reason)
    return reason


def default_registry() -> str:
    """Return where the last release from this folder went, for commands about what was released."""
    if not paths.RELEASE.exists():
        raise RegistryError(f"no {paths.RELEASE} here that says which registry; give --registry HOST/REPOSITORY")
    last = Release.load(paths.RELEASE)
    return f"{last.registry}/{last.repository}"
