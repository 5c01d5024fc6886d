"""One large blob, sent in chunks: what a broken line or a killed run leaves at the registry is not sent again.

The specification's session goes POST, PATCH after PATCH, PUT; each answer names the address for the next request. That
address is kept in a file until the blob is whole, so that another process can go on. distribution 2.8 (Debian's
docker-registry, Harbor) gives a session up when a chunk broke off in its middle; then only the blob's own beginning is
sent again, never a blob that is whole.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx2

from pipeline.errors import RegistryError
from pipeline.oci import Descriptor
from pipeline.registry.session import Interrupted, RefusedError, Session

CHUNK_BYTES = 64 * 2**20
"""Proxies in front of registries take 100 MB and more."""

BLOCK_BYTES = 2**20

UPLOADS = Path(".assay/uploads")
"""Sessions that are not at their end."""

NO_CHUNKS = frozenset({400, 404, 405, 416, 501})
"""What registries answer to a second chunk, or to the end of a blob that came in chunks, when they take none."""

OCTETS = "application/octet-stream"


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """How far a session has come."""

    url: str
    offset: int


def upload(session: Session, path: Path, blob: Descriptor, on_bytes: Callable[[int], object]) -> int:
    """Send a blob; return how many bytes were taken. `on_bytes` gets each step's, negative when it falls back."""
    note = UPLOADS / f"{session.address.host}-{session.address.repository}-{blob.digest}.json".replace("/", "-")
    what = f"push of a layer of {blob.size / 1e6:.1f} MB"
    place = _resumed(session, note, what) or _begun(session, what)
    attempt, sent, furthest = 0, 0, place.offset
    on_bytes(place.offset)
    while True:
        _keep(note, place)
        try:
            if place.offset == blob.size:
                _finish(session, place, blob, what)
                note.unlink(missing_ok=True)
                return sent
            following = _send_chunk(session, path, place, blob, what)
            sent += following.offset - place.offset
            if following.offset > furthest:  # progress earns fresh attempts
                attempt, furthest = 0, following.offset
        except RefusedError as refusal:
            note.unlink(missing_ok=True)  # what it refused once, such as a wrong digest, it would refuse again
            if not session.takes_chunks or place.offset == 0 or refusal.status not in NO_CHUNKS:
                raise
            log.warning("%s; sending it in one piece", refusal)
            session.takes_chunks = False
            following = _begun(session, what)
        except Interrupted as trouble:
            session.pause(trouble, attempt, what)
            attempt += 1
            if place.offset == blob.size and has(session, blob):  # the answer was lost, not the blob
                note.unlink()
                return sent
            following = _status(session, place, what) or _begun(session, what)
        on_bytes(following.offset - place.offset)
        place = following


def has(session: Session, blob: Descriptor) -> bool:
    """Whether the repository holds a blob."""
    url = f"{session.address.api}/blobs/{blob.digest}"
    return session.request("HEAD", url, what="push", expect=(200, 404)).status_code == 200


def _begun(session: Session, what: str) -> Place:
    answer = session.request("POST", f"{session.address.api}/blobs/uploads/", what=what, expect=(202,))
    return Place(location(answer), 0)


def _resumed(session: Session, note: Path, what: str) -> Place | None:
    """Go on where an earlier run was; a session that the registry gave up, or a note of nonsense, counts as none."""
    try:
        kept = json.loads(note.read_bytes())
        place = Place(str(kept["url"]), int(kept["offset"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _status(session, place, what)


def _status(session: Session, place: Place, what: str) -> Place | None:
    """Ask how far the registry came; None when it knows the session no more."""
    try:
        answer = session.request("GET", place.url, what=what, expect=(204,))
    except RefusedError:
        return None
    first, _, last = answer.headers.get("Range", "0-0").rpartition("=")[2].partition("-")
    # "0-0" is both one byte and none: then, too, nothing is lost by taking it for none but that byte.
    reached = int(last) + 1 if first == "0" and int(last or 0) > 0 else 0
    return Place(location(answer), reached)


def _send_chunk(session: Session, path: Path, place: Place, blob: Descriptor, what: str) -> Place:
    end = min(place.offset + CHUNK_BYTES, blob.size) if session.takes_chunks else blob.size
    answer = session.once(
        "PATCH",
        place.url,
        what=what,
        expect=(202,),
        headers={
            "Content-Type": OCTETS,
            "Content-Length": str(end - place.offset),
            "Content-Range": f"{place.offset}-{end - 1}",
        },
        body=lambda: _read(path, place.offset, end),
    )
    return Place(location(answer), end)


def _finish(session: Session, place: Place, blob: Descriptor, what: str) -> None:
    """Name the digest; the registry holds what it got against it."""
    url = str(httpx2.URL(place.url).copy_merge_params({"digest": blob.digest}))
    session.once("PUT", url, what=what, expect=(201,), headers={"Content-Type": OCTETS})


def _read(path: Path, start: int, end: int) -> Iterable[bytes]:
    with path.open("rb") as stream:
        stream.seek(start)
        while start < end and (block := stream.read(min(BLOCK_BYTES, end - start))):
            start += len(block)
            yield block


def location(answer: httpx2.Response) -> str:
    """Return the absolute address at which an upload goes on."""
    if "Location" not in answer.headers:
        raise RegistryError(f"{answer.url.host}: its answer to an upload has no Location; it is no OCI registry")
    return str(answer.url.join(answer.headers["Location"]))


def _keep(note: Path, place: Place) -> None:
    """Write the session down for this user alone: some registries sign its address."""
    note.parent.mkdir(parents=True, exist_ok=True)
    partial = note.with_suffix(".partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        json.dump({"url": place.url, "offset": place.offset}, stream)
    partial.replace(note)
