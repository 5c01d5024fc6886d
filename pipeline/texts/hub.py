"""Documents out of a dataset repository on the Hub: its files, at one commit. No dataset's own code is run."""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pipeline import hub, progress
from pipeline.errors import CorpusError
from pipeline.hub_errors import Repository
from pipeline.texts import files, kinds
from pipeline.texts.chats import Render
from pipeline.texts.document import Document

SCHEME = "hf://datasets/"

FORM = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.+))?")


def read(source: str, revision: str | None, render: Render) -> tuple[tuple[Document, ...], str]:
    """Return the documents of hf://datasets/org/name[@revision]/path, and the commit they are of.

    The path is a file, a folder or a pattern (`*` within one folder, `**` over folders), as in Hugging Face's paths. Of
    a folder the files are taken that are called texts: others are not fetched to look into them.
    """
    repository, wanted, path = parse(source, revision)
    found = hub.snapshot(repository, wanted)
    chosen = tuple(file for file in found.files if _matches(file.path, path))
    if not chosen:
        known = [file.path for file in found.files if file.path.lower().endswith(kinds.SUFFIXES)]
        raise CorpusError(
            f"{source}: no file at {found.commit} matches {path!r}; its files of text are "
            + (", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "") if known else "none")
        )
    hub.require_space(repository, hub.missing_bytes(found, chosen))
    return tuple(_documents(source, found, chosen, render)), found.commit


def _documents(
    source: str, found: hub.Snapshot, chosen: tuple[hub.RemoteFile, ...], render: Render
) -> Iterator[Document]:
    with progress.bytes_bar(f"texts: {source}", sum(file.bytes for file in chosen)) as bar:
        for done, file in enumerate(chosen):
            bar.set_postfix_str(f"file {done + 1}/{len(chosen)} {file.path}", refresh=False)
            local = hub.download(found, file, bar.update)
            yield from files.documents(local, f"{SCHEME}{found.repository.name}/{file.path}", render)


def parse(source: str, revision: str | None) -> tuple[Repository, str | None, str]:
    """Split a source into repository, revision and path."""
    if not source.startswith(SCHEME):
        raise CorpusError(f"{source}: is no dataset; expected {SCHEME}org/name/path")
    form = FORM.fullmatch(source.removeprefix(SCHEME))
    if form is None or form["path"] is None:
        raise CorpusError(
            f"{source}: expected {SCHEME}org/name[@revision]/path, the path being a file, a folder or a pattern "
            "such as data/*.parquet"
        )
    inside = form["revision"]
    if inside is not None and revision is not None and inside != revision:
        raise CorpusError(f"{source}: names revision {inside!r}, and `revision` beside it says {revision!r}; keep one")
    return Repository("dataset", form["name"]), revision or inside, form["path"].strip("/")


def _matches(path: str, wanted: str) -> bool:
    """Whether a file is the wanted one, fits the pattern, or is a text below the wanted folder."""
    if any(sign in wanted for sign in "*?["):
        return _fits(PurePosixPath(path).parts, PurePosixPath(wanted).parts)
    return path == wanted or (path.startswith(f"{wanted}/") and path.lower().endswith(kinds.SUFFIXES))


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
