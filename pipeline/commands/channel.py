"""`assay promote` and `assay rollback`: tags that move, such as `stable`, and where they have been.

The history is kept in the registry, as an OCI index under the tag `<tag>.history`: a tag is moved by CI jobs and by
people at several machines, and all that these share for certain is the registry; a file in the repository would be
right only after someone had committed and pushed it, and a rollback is made in a hurry. Being an index, it also keeps
a registry's garbage collection from an image that a rollback may want, and any OCI tool can show it.

A registry cannot compare and swap: two people who move one tag in the same second both succeed, the later one wins, and
the history may miss the earlier. Where another tool moves the tag, or a run breaks off between tag and history, the
next run finds the tag elsewhere than the history says, and notes that as a move. So a promotion moves the tag first,
since a rollback must not lead to an image that never was there; a rollback notes itself first, since else its
repetition would lead forward again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline import oci
from pipeline.commands.release import VERSION, version_tag
from pipeline.errors import ParamsError, RegistryError
from pipeline.oci import Descriptor
from pipeline.records import canonical_json
from pipeline.registry.address import Address, check_digest, check_tag
from pipeline.registry.client import Manifest, Repository
from pipeline.registry.session import Session

CREATED = "org.opencontainers.image.created"
MOVE = "ai.assay.move"
PROMOTED, ROLLED_BACK, FOUND = "promoted", "rolled back", "found"
"""FOUND: the tag was moved by another tool, or by a run that broke off."""


@dataclass(frozen=True, slots=True)
class Move:
    """One entry of a tag's history."""

    image: Descriptor
    """With version, time and kind of the move in its annotations."""

    @classmethod
    def now(cls, kind: str, manifest: Manifest) -> "Move":
        """Note a move to this image."""
        annotations = {MOVE: kind, CREATED: datetime.now(UTC).isoformat(timespec="seconds")}
        if version := (manifest.content.get("annotations") or {}).get(VERSION):
            annotations[VERSION] = version
        plain = manifest.descriptor
        return cls(
            Descriptor(media_type=plain.media_type, digest=plain.digest, size=plain.size, annotations=annotations)
        )

    @property
    def kind(self) -> str:
        """PROMOTED, ROLLED_BACK or FOUND."""
        return self.image.annotations[MOVE]

    def __str__(self) -> str:
        version = self.image.annotations.get(VERSION, "no version")
        return f"{self.image.annotations[CREATED]}  {self.kind:<11}  {version}  {self.image.digest}"


def promote(registry: str, digest: str, tag: str) -> str:
    """Point a tag at a released image; return what was done. RegistryError when the repository has no such image."""
    check_digest(digest)
    with Session(Address.parse(registry)) as session:
        repository = Repository(session)
        channel = _Channel(repository, f"{session.address}", check_tag(tag))
        wanted = repository.manifest(digest)
        if wanted is None:
            raise RegistryError(f"{session.address} has no image {digest}; `assay release` it first")
        if channel.now is not None and channel.now.descriptor.digest == digest:
            return f"{session.address}:{tag} is {digest} already"
        channel.move(PROMOTED, wanted)
    return f"{session.address}:{tag} is now {digest}"


def rollback(registry: str, tag: str) -> str:
    """Point a tag at the image before; return what was done. Again: at the one before that."""
    with Session(Address.parse(registry)) as session:
        repository = Repository(session)
        channel = _Channel(repository, f"{session.address}", check_tag(tag))
        before = standing(channel.moves)[:-1]
        if not before:
            raise RegistryError(f"{session.address}:{tag} has no image before, to go back to")
        target = repository.manifest(before[-1].image.digest)
        if target is None:
            raise RegistryError(
                f"{session.address}: {before[-1].image.digest}, which {tag} was before, is gone; promote another digest"
            )
        channel.move(ROLLED_BACK, target)
    return f"{session.address}:{tag} is now {before[-1].image.digest} again"


def history(registry: str, tag: str) -> list[Move]:
    """Return where a tag has been, oldest first."""
    with Session(Address.parse(registry)) as session:
        return _Channel(Repository(session), f"{session.address}", check_tag(tag)).moves


def standing(moves: Sequence[Move]) -> list[Move]:
    """Return the moves that count: a rollback takes back the one before it. The last is where the tag is."""
    stack: list[Move] = []
    for move in moves:
        if move.kind == ROLLED_BACK:
            stack.pop()
        else:
            stack.append(move)
    return stack


class _Channel:
    """A tag, where it is, and where it has been."""

    def __init__(self, repository: Repository, where: str, tag: str) -> None:
        self._repository, self._tag, self._index = repository, tag, f"{tag}.history"
        self.now = repository.manifest(tag)
        kept = repository.manifest(check_tag(self._index))
        self.moves = [Move(Descriptor.parse(one)) for one in kept.content["manifests"]] if kept else []
        if self.now is None:
            return
        if version_tag(self.now.content) == tag:
            raise ParamsError(f"{where}:{tag} is a released version, which does not move; choose a name such as stable")
        last = standing(self.moves)[-1:]
        if not last or last[0].image.digest != self.now.descriptor.digest:
            self.moves.append(Move.now(FOUND, self.now))

    def move(self, kind: str, target: Manifest) -> None:
        """Move the tag and note it, in the order after which a broken-off run can be repeated (see above)."""
        if kind == ROLLED_BACK:
            self._note(kind, target)
        self._repository.push_manifest(target.data, target.descriptor.media_type, self._tag)
        if kind == PROMOTED:
            self._note(kind, target)

    def _note(self, kind: str, target: Manifest) -> None:
        moves = [one.image.json() for one in (*self.moves, Move.now(kind, target))]
        index = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": moves}
        self._repository.push_manifest(canonical_json(index).encode(), oci.INDEX, self._index)
