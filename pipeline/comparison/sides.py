"""The two sides of a comparison: records of a git revision, of a DVC experiment, of a folder, or of the workspace.

A revision's records are read through DVC: from git what git holds, from the cache or the remote what DVC holds. Nothing
is checked out.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from evals.tokens import Tokens
from pipeline import paths
from pipeline.errors import ParamsError, StorageError
from pipeline.records import Latency, Record, Selection, Tasks
from pipeline.records.base import problems

WORKSPACE = "."

Read = Callable[[Path], bytes]
"""Returns a file's content; FileNotFoundError where there is none."""

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One run's records."""

    title: str
    """As a person calls it: "HEAD (1a2b3c4)"."""
    selection: Selection
    read: Read
    missing: list[str] = field(default_factory=list)
    """Files that were looked for and are not there."""

    def tokens(self, name: str) -> Tokens | None:
        """Return an artifact's per-token figures."""
        content = self._content(paths.tokens(name))
        if content is None:
            return None
        try:
            return Tokens.load(BytesIO(content))
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise _foreign(paths.tokens(name), self.title, str(error)) from error

    def tasks(self, name: str) -> Tasks | None:
        """Return an artifact's answers."""
        content = self._content(paths.tasks(name))
        return None if content is None else parse(Tasks, content, paths.tasks(name), self.title)

    def latency(self, name: str) -> Latency | None:
        """Return an artifact's times."""
        content = self._content(paths.latency(name))
        return None if content is None else parse(Latency, content, paths.latency(name), self.title)

    def _content(self, path: Path) -> bytes | None:
        try:
            return self.read(path)
        except FileNotFoundError:
            self.missing.append(path.as_posix())
            return None


def side(where: str) -> Side:
    """Open a folder that holds a selection.json (`.` is the workspace), else a git revision or a DVC experiment.

    ParamsError where it is none of these; StorageError where the run left no selection.json there, or where the
    records are another version's.
    """
    title, read = _folder(Path(where)) if (Path(where) / paths.SELECTION).is_file() else _revision(where, Path())
    return _side(title, read)


def workspace(project: Path) -> Side:
    """Open the run in a project's folder, whatever else its name could stand for."""
    return _side(*_folder(project))


def revision(project: Path, name: str) -> Side:
    """Open the run of a project at a git revision or a DVC experiment."""
    title, read = _revision(name, project)
    return _side(f"{project}, {title}", read)


def _side(title: str, read: Read) -> Side:
    try:
        content = read(paths.SELECTION)
    except FileNotFoundError as error:
        raise StorageError(
            f"{title} holds no {paths.SELECTION}: nothing was finished there, or it was not committed. Run `dvc repro` "
            f"there, and commit {paths.SELECTION}, {paths.METRICS} and {paths.REPORT} with dvc.lock"
        ) from error
    return Side(title=title, selection=parse(Selection, content, paths.SELECTION, title), read=read)


def parse(kind: type[R], content: bytes, path: Path, title: str) -> R:
    """Read a record; StorageError says that it is damaged, or which keys this version does not know or misses."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise StorageError(
                f"{path} of {title} is damaged ({problems(error)}); `git checkout` or `dvc checkout` brings it back, "
                "or `dvc repro` makes it again"
            ) from error
        raise _foreign(path, title, problems(error)) from error


def _foreign(path: Path, title: str, reason: str) -> StorageError:
    return StorageError(
        f"{path} of {title} was written by another version of Assay, whose records this one does not read ({reason}). "
        "Run `dvc repro` there with this version, or compare with the version that wrote it"
    )


def _folder(folder: Path) -> tuple[str, Read]:
    title = "the workspace" if folder.resolve() == Path.cwd() else str(folder)
    return title, lambda path: (folder / path).read_bytes()


def _revision(revision: str, project: Path) -> tuple[str, Read]:
    if revision == WORKSPACE:
        return _folder(project)
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexDirError
    from scmrepo.exceptions import SCMError

    try:
        files = DVCFileSystem(url=None if project == Path() else str(project), rev=revision)
        place = project.resolve().relative_to(Path(files.repo.scm.root_dir).resolve())
        commit = str(files.repo.get_rev())[:7]
    except (DvcException, SCMError) as error:
        raise ParamsError(
            f"{revision}: {error}; it is no git revision, no DVC experiment, and no folder with a {paths.SELECTION}"
        ) from error
    title = revision if revision.startswith(commit) else f"{revision} ({commit})"

    def read(path: Path) -> bytes:
        try:
            # Of a revision DVC reads from the root of the Git repository, whichever project of it was named.
            with files.open((place / path).as_posix(), "rb") as stream:
                return bytes(stream.read())
        except DataIndexDirError as error:  # the list of a folder's files is nowhere
            raise FileNotFoundError(path) from error

    return title, read
