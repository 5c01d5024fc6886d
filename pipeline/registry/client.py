"""One repository of a registry: what github.com/opencontainers/distribution-spec (1.1) says, as far as needed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from pipeline import oci
from pipeline.errors import RegistryError
from pipeline.oci import Descriptor
from pipeline.records import canonical_json
from pipeline.registry.session import Session
from pipeline.registry.upload import OCTETS, has, location, upload

EMPTY = Descriptor(media_type="application/vnd.oci.empty.v1+json", digest=oci.digest(b"{}"), size=2)
"""The configuration of what is no image (image-spec, manifest.md)."""

DOCKER = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
"""The media types before OCI's: a tag may hold an image that docker pushed."""

MANIFESTS = {"Accept": ", ".join((oci.MANIFEST, oci.INDEX, *DOCKER))}

OnBytes = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest or index as the registry holds it."""

    descriptor: Descriptor
    data: bytes
    """Byte for byte: its digest is its name."""
    content: dict[str, Any]


@dataclass(slots=True)
class Traffic:
    """Bytes of blobs."""

    sent: int = 0
    skipped: int = 0
    """What the repository had already."""


class Repository:
    """Blobs, manifests, tags and referrers of one repository."""

    def __init__(self, session: Session) -> None:
        self.traffic = Traffic()
        self._session = session
        self._api = session.address.api

    def push_blob(self, path: Path, blob: Descriptor, on_bytes: OnBytes = lambda _: None) -> None:
        """Send a blob, from where an earlier run broke off, unless it is there. `on_bytes` gets each step's bytes."""
        if has(self._session, blob):
            self.traffic.skipped += blob.size
            on_bytes(blob.size)
        else:
            self.traffic.sent += upload(self._session, path, blob, on_bytes)

    def push_bytes(self, data: bytes, media_type: str) -> Descriptor:
        """Send a small blob in one piece, unless it is there."""
        blob = Descriptor(media_type=media_type, digest=oci.digest(data), size=len(data))
        if has(self._session, blob):
            self.traffic.skipped += blob.size
            return blob
        what = f"push of a blob of {blob.size} bytes"
        begun = self._session.request("POST", f"{self._api}/blobs/uploads/", what=what, expect=(202,))
        target = httpx2.URL(location(begun)).copy_merge_params({"digest": blob.digest})
        headers = {"Content-Type": OCTETS}
        self._session.request("PUT", str(target), what=what, expect=(201,), headers=headers, body=data)
        self.traffic.sent += blob.size
        return blob

    def push_manifest(self, data: bytes, media_type: str, reference: str | None = None) -> Descriptor:
        """Put a manifest under a tag, or under its digest alone. RegistryError when it is kept under another digest."""
        manifest = Descriptor(media_type=media_type, digest=oci.digest(data), size=len(data))
        self._put(data, manifest, reference or manifest.digest)
        return manifest

    def _put(self, data: bytes, manifest: Descriptor, reference: str) -> bool:
        """Put a manifest; return whether the registry keeps a list of referrers by itself."""
        answer = self._session.request(
            "PUT",
            f"{self._api}/manifests/{reference}",
            what=f"push of the manifest {reference}",
            expect=(201,),
            headers={"Content-Type": manifest.media_type},
            body=data,
        )
        kept = answer.headers.get("Docker-Content-Digest", manifest.digest)
        if kept != manifest.digest:
            raise RegistryError(
                f"{self._session.address}: keeps {manifest.digest} as {kept}; it must not alter manifests"
            )
        return "OCI-Subject" in answer.headers

    def manifest(self, reference: str) -> Manifest | None:
        """Fetch a manifest by tag or digest; None when there is none."""
        url = f"{self._api}/manifests/{reference}"
        answer = self._session.request("GET", url, what=f"look-up of {reference}", expect=(200, 404), headers=MANIFESTS)
        if answer.status_code == 404:
            return None
        data = answer.content
        if reference.startswith("sha256:") and oci.digest(data) != reference:
            raise RegistryError(f"{self._session.address}: gave another manifest than {reference}")
        try:
            content: dict[str, Any] = json.loads(data)
            media_type = content.get("mediaType") or answer.headers["Content-Type"]
        except (ValueError, KeyError, AttributeError) as error:
            raise RegistryError(f"{self._session.address}: what it has under {reference} is no manifest") from error
        return Manifest(Descriptor(media_type=media_type, digest=oci.digest(data), size=len(data)), data, content)

    def attach(self, data: bytes, media_type: str, title: str, subject: Descriptor) -> Descriptor:
        """Attach a document to an image as a referrer, found by whoever has the image's digest.

        Its manifest depends on nothing but document and image, so a second push changes nothing. Where the registry
        does not list referrers, the index under the tag sha256-<hex> does, which clients look at instead
        (distribution-spec, "Referrers Tag Schema").
        """
        layer = self.push_bytes(data, media_type)
        self.push_bytes(b"{}", EMPTY.media_type)
        manifest = {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST,
            "artifactType": media_type,
            "config": EMPTY.json(),
            "layers": [layer.json() | {"annotations": {"org.opencontainers.image.title": title}}],
            "subject": Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size).json(),
        }
        encoded = canonical_json(manifest).encode()
        found = Descriptor(media_type=oci.MANIFEST, digest=oci.digest(encoded), size=len(encoded))
        if not self._put(encoded, found, found.digest):
            self._list_referrer(found.json() | {"artifactType": media_type}, subject.digest)
        return found

    def _list_referrer(self, referrer: Mapping[str, Any], subject: str) -> None:
        tag = subject.replace(":", "-")
        listed = self.manifest(tag)
        known = list(listed.content["manifests"]) if listed else []
        if any(one["digest"] == referrer["digest"] for one in known):
            return
        index = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [*known, referrer]}
        self.push_manifest(canonical_json(index).encode(), oci.INDEX, tag)
