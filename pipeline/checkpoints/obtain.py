"""Getting a checkpoint: from the Hub at one commit, or from a folder, which stays where it is."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import progress
from pipeline.checkpoints import config, layout
from pipeline.checkpoints.config import Refusals
from pipeline.errors import CheckpointError

if TYPE_CHECKING:
    from pipeline.hub import RemoteFile, Snapshot
    from pipeline.hub_errors import Repository

SCHEME = "hf://"


@dataclass(frozen=True, slots=True)
class Obtained:
    """A checkpoint that lies in a folder and is not checked yet."""

    folder: Path
    revision: str | None
    """The commit; None for a folder."""
    hub_sha256: dict[str, str] = field(default_factory=dict)
    """The Hub's own sha256 of each file for which it gives one."""


def obtain(source: str, revision: str | None, refusals: Refusals | None = None) -> Obtained:
    """Return the folder of a checkpoint, downloading `hf://org/name` into the Hub client's cache where needed.

    The revision is resolved to a commit first and everything is asked for at that commit. Small files come before
    weights, and what they give reason to refuse is refused then; with `refusals` an architecture that no wanted
    artifact takes is, too. Files come one at a time, each resumed where an earlier run stopped; no pickle ever comes.
    Raises CheckpointError, HubError or StorageError.
    """
    if source.startswith(SCHEME):
        return _from_hub(source, revision, refusals or (lambda _: {}))
    if "://" in source:
        raise CheckpointError(f"checkpoint.source: {source!r} is of no known kind; expected hf://org/name or a folder")
    folder = Path(source).expanduser()
    if not folder.is_dir():
        hint = f"; for the Hub write {SCHEME}{source}" if re.fullmatch(r"[\w.-]+/[\w.-]+", source) else ""
        raise CheckpointError(
            f"checkpoint.source: {source} is {'a file' if folder.exists() else 'not there'}, expected a folder{hint}"
        )
    if revision is not None:
        raise CheckpointError(
            f"checkpoint.revision: {revision!r} has no meaning for the folder {source}; leave it out, or name an "
            f"{SCHEME} source"
        )
    return Obtained(folder.resolve(), None)


def repository(source: str) -> "Repository":
    """Return the one that `hf://org/name` names, or raise CheckpointError."""
    from pipeline.hub_errors import Repository

    name = source.removeprefix(SCHEME).removeprefix("models/")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise CheckpointError(
            f"{source}: names no repository; expected {SCHEME}org/name, with the branch, tag or commit in "
            "checkpoint.revision"
        )
    return Repository("model", name)


def _from_hub(source: str, revision: str | None, refusals: Refusals) -> Obtained:
    from pipeline import hub

    found = hub.snapshot(repository(source), revision)
    files = {file.path: file for file in found.files}
    layout.require_safetensors(files.keys(), source)
    _download(found, (files[layout.CONFIG],), source)
    _download(found, tuple(files[path] for path in layout.side_files(files.keys())), source)
    config.check(found.folder, source, refusals)
    shards = layout.weight_map(found.folder, files.keys(), source)
    _download(found, tuple(files[path] for path in sorted(set(shards.values()) if shards else [layout.SINGLE])), source)
    taken = {*layout.side_files(files.keys()), layout.CONFIG, *(shards.values() if shards else [layout.SINGLE])}
    sha256 = {path: files[path].sha256 for path in sorted(taken)}
    return Obtained(found.folder, found.commit, {path: known for path, known in sha256.items() if known})


def _download(found: "Snapshot", files: tuple["RemoteFile", ...], source: str) -> None:
    """Download files one after the other, showing files done, bytes and the time left."""
    from pipeline import hub

    hub.require_space(found.repository, hub.missing_bytes(found, files))
    with progress.bytes_bar(f"checkpoint: {source}", sum(file.bytes for file in files)) as bar:
        for done, file in enumerate(files):
            bar.set_postfix_str(f"file {done + 1}/{len(files)} {file.path}", refresh=False)
            hub.download(found, file, bar.update)
