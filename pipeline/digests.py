"""Identity by content: sha256 of files, one digest for a folder."""

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pipeline import paths
from pipeline.errors import StorageError
from pipeline.records import FILE, File, canonical_json

MEMO_ROWS = 20_000
"""Digests kept, the newest first; a row is about 250 bytes."""

SETTLED_SECONDS = 2.0
"""A file changed less than this ago is not memoised: a second write could leave its time stamp as it is."""


def of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_text(text: str) -> str:
    """Return the sha256 of a text in UTF-8, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def of_value(value: object) -> str:
    """Return the sha256 of a JSON value in canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def of_files(files: Iterable[File]) -> str:
    """Return one digest over names and contents, independent of order and of where the folder lies."""
    return of_value(sorted([file.path, file.sha256] for file in files))


def list_files(folder: Path) -> tuple[File, ...]:
    """Return every file below a folder, sorted by path, our own record left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FILE)
    return tuple(
        File(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=of_file(path))
        for path in paths
    )


def check_files(folder: Path, files: Iterable[File]) -> None:
    """Raise StorageError when a file that a record lists is missing, or has other bytes than it had then."""
    for file in files:
        path = folder / file.path
        if not path.exists():
            raise StorageError(f"{path}: is missing; remove {folder} and run `dvc repro`")
        if path.stat().st_size != file.bytes or of_file_memoised(path) != file.sha256:
            raise StorageError(
                f"{path}: was truncated or altered after it was made; remove {folder} and run `dvc repro`"
            )


def of_file_memoised(path: Path) -> str:
    """Return the sha256 of a file, without reading it again when path, size, time stamp and inode are as before.

    The memo is shared by all processes of a user. It never outlives a change that the file system shows; a change that
    keeps size, time stamp and inode (a disk that flips bits, a tool that sets time stamps back) goes unseen here, and
    is what the checkpoint stage reads every byte for.
    """
    before = path.stat()
    with _memo() as memo:
        row = memo.execute("SELECT sha256 FROM digests WHERE path = ? AND identity = ?", _key(path, before)).fetchone()
    if row is not None:
        return str(row[0])
    sha256 = of_file(path)
    remember(path, before, sha256)
    return sha256


def remember(path: Path, before: os.stat_result, sha256: str) -> None:
    """Keep a digest for `of_file_memoised`; `before` is what stat told before the file was read."""
    after = path.stat()
    if _key(path, before) != _key(path, after) or time.time() - after.st_mtime < SETTLED_SECONDS:
        return
    with _memo() as memo:
        memo.execute(
            "INSERT OR REPLACE INTO digests (path, identity, sha256, written) VALUES (?, ?, ?, ?)",
            (*_key(path, after), sha256, time.time()),
        )
        memo.execute(
            "DELETE FROM digests WHERE path NOT IN (SELECT path FROM digests ORDER BY written DESC LIMIT ?)",
            (MEMO_ROWS,),
        )


def _key(path: Path, stat: os.stat_result) -> tuple[str, str]:
    return str(path.resolve()), f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


@contextmanager
def _memo() -> Iterator[sqlite3.Connection]:
    """Open the memo for one transaction; SQLite's own locks keep processes apart."""
    folder = paths.user_cache() / "digests"
    file = folder / "sha256.sqlite"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=60)) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS digests "
                "(path TEXT PRIMARY KEY, identity TEXT NOT NULL, sha256 TEXT NOT NULL, written REAL NOT NULL)"
            )
            yield connection
    except (OSError, sqlite3.Error) as error:
        raise StorageError(
            f"{file}: the memo of digests cannot be used ({error}); delete the file, or set XDG_CACHE_HOME to a folder "
            "that can be written"
        ) from error
