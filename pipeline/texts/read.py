"""Reading text sources of every kind into documents."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import CorpusError
from pipeline.texts import files
from pipeline.texts.document import Document

KINDS = ("hf://datasets/org/name/path", "stdlib://training", "stdlib://evaluation")


@dataclass(frozen=True, slots=True)
class Texts:
    """The documents of one source, in an order that does not change between runs."""

    documents: tuple[Document, ...]
    revision: str | None
    """The commit, for a dataset on the Hub."""


def read(source: str, revision: str | None = None) -> Texts:
    """Read a file, a folder, hf://datasets/org/name[@revision]/path or stdlib://training and stdlib://evaluation.

    Raises CorpusError for a source that is missing, empty or not text, HubError for trouble on the way to the Hub.
    """
    commit = None
    if source.startswith("hf://"):
        documents, commit = _from_hub(source, revision)
    elif revision is not None:
        raise CorpusError(f"{source}: revision {revision!r} has no meaning here; only hf:// sources have one")
    elif source.startswith("stdlib://"):
        documents = tuple(_from_stdlib(source))
    else:
        documents = tuple(_from_path(_path(source), source))
    if not documents:
        raise CorpusError(f"{source}: holds no text; expected at least one document that is not blank")
    return Texts(documents, commit)


def local_path(source: str) -> Path | None:
    """Return the file or folder to watch for change; None for sources that are not on this disk."""
    return None if source.startswith(("hf://", "stdlib://")) else _path(source)


def _path(source: str) -> Path:
    """Return a source's path; refuse what looks like an address of an unknown kind."""
    scheme, separator, _ = source.partition("://")
    if separator:
        near = difflib.get_close_matches(scheme, ["hf", "stdlib", "file"], n=1, cutoff=0.4)
        better = {"hf": KINDS[0], "stdlib": KINDS[1], "file": "the path alone, without file://"}
        hint = f"; did you mean {better[near[0]]}?" if near else ""
        raise CorpusError(f"{source}: unknown kind {scheme}://{hint} Expected a path, {', '.join(KINDS)}")
    return Path(source).expanduser()


def _from_hub(source: str, revision: str | None) -> tuple[tuple[Document, ...], str]:
    from pipeline.texts import hub

    if not source.startswith(hub.SCHEME):
        raise CorpusError(f"{source}: is no dataset; expected {KINDS[0]}")
    return hub.read(source, revision)


def _from_stdlib(source: str) -> Iterator[Document]:
    from pipeline.texts import stdlib

    match source.removeprefix("stdlib://"):
        case "training":
            return stdlib.documents("training")
        case "evaluation":
            return stdlib.documents("evaluation")
        case _:
            raise CorpusError(f"{source}: expected {KINDS[1]} or {KINDS[2]}")


def _from_path(path: Path, source: str) -> Iterator[Document]:
    """Yield a file's documents, or those of every file of text below a folder, sorted by path."""
    if path.is_file():
        yield from files.documents(path, path.name)
        return
    if not path.is_dir():
        raise CorpusError(f"{source}: there is no such file or folder (looked for {path.absolute()})")
    found = sorted(file for file in path.rglob("*") if file.is_file() and _is_text(file.relative_to(path)))
    if not found:
        raise CorpusError(f"{source}: holds no file of text; expected {', '.join(files.SUFFIXES)}")
    for file in found:
        yield from files.documents(file, file.relative_to(path).as_posix())


def _is_text(path: Path) -> bool:
    """Whether a path below a source folder is of a kind we read, and not hidden (editors' and Git's own files)."""
    return path.suffix.lower() in files.SUFFIXES and not any(part.startswith(".") for part in path.parts)
