"""Reading text sources of every kind into documents."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import CorpusError
from pipeline.texts import files
from pipeline.texts.chats import Conversation, Render
from pipeline.texts.document import Document

HUB = "hf://"
BUILT_IN = "stdlib://"
KINDS = ("hf://datasets/org/name/path", "stdlib://training", "stdlib://evaluation")


@dataclass(frozen=True, slots=True)
class Texts:
    """The documents of one source, in an order that does not change between runs."""

    documents: tuple[Document, ...]
    revision: str | None
    """The commit, for a dataset on the Hub."""


def without_template(conversation: Conversation) -> str:
    """Render nothing: what stands in where no checkpoint is at hand."""
    raise ValueError("holds a conversation, and there is no chat template to render it with")


def read(source: str, revision: str | None = None, render: Render = without_template) -> Texts:
    """Read a file, a folder, hf://datasets/org/name[@revision]/path or stdlib://training and stdlib://evaluation.

    `render` makes a text of each conversation of chat data. Raises CorpusError for a source that is missing, empty or
    not text, HubError for trouble on the way to the Hub.
    """
    commit = None
    if (local := local_files(source, revision)) is not None:
        documents = tuple(document for name, path in local.items() for document in files.documents(path, name, render))
    elif source.startswith(HUB):
        from pipeline.texts import hub

        documents, commit = hub.read(source, revision, render)
    else:
        documents = tuple(_from_stdlib(source))
    if not documents:
        raise CorpusError(f"{source}: holds no text; expected at least one document that is not blank")
    return Texts(documents, commit)


def check(source: str, revision: str | None = None) -> None:
    """Refuse what cannot be read, as far as it shows in the source's form and in the beginnings of local files."""
    if (local := local_files(source, revision)) is not None:
        for name, path in local.items():
            files.check(path, name)
    elif source.startswith(HUB):
        from pipeline.texts import hub

        hub.parse(source, revision)
    else:
        _from_stdlib(source)


def local_files(source: str, revision: str | None = None) -> Mapping[str, Path] | None:
    """Return the files of a source by name, sorted; None for one that is not on this disk.

    Below a folder hidden files are left out, and those in hidden folders: they are editors' and Git's own.
    """
    if source.startswith(HUB):
        return None
    if revision is not None:
        raise CorpusError(f"{source}: revision {revision!r} has no meaning here; only hf:// sources have one")
    if source.startswith(BUILT_IN):
        return None
    path = _path(source)
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise CorpusError(f"{source}: there is no such file or folder (looked for {path.absolute()})")
    below = {file.relative_to(path): file for file in sorted(path.rglob("*")) if file.is_file()}
    found = {
        name.as_posix(): file for name, file in below.items() if not any(part.startswith(".") for part in name.parts)
    }
    if not found:
        raise CorpusError(f"{source}: holds no file; expected files of text")
    return found


def _path(source: str) -> Path:
    """Return a source's path; refuse what looks like an address of an unknown kind."""
    scheme, separator, _ = source.partition("://")
    if separator:
        near = difflib.get_close_matches(scheme, ["hf", "stdlib", "file"], n=1, cutoff=0.4)
        better = {"hf": KINDS[0], "stdlib": KINDS[1], "file": "the path alone, without file://"}
        hint = f"; did you mean {better[near[0]]}?" if near else ""
        raise CorpusError(f"{source}: unknown kind {scheme}://{hint} Expected a path, {', '.join(KINDS)}")
    return Path(source).expanduser()


def _from_stdlib(source: str) -> Iterator[Document]:
    from pipeline.texts import stdlib

    match source.removeprefix(BUILT_IN):
        case "training":
            return stdlib.documents("training")
        case "evaluation":
            return stdlib.documents("evaluation")
        case _:
            raise CorpusError(f"{source}: expected {KINDS[1]} or {KINDS[2]}")
