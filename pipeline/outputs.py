"""Outputs that are there whole or not at all: filled aside, then renamed."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StorageError

SCRATCH = Path(".assay/partial")
"""Unfinished outputs, on the same file system as the finished ones, so that a rename is atomic."""


@contextmanager
def folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `target` when the block ends well, and vanishes when it does not.

    A lock keeps out a second process that fills the same target, such as one that survived its killed `dvc repro`.
    What a killed process left is removed by the next one.
    """
    SCRATCH.mkdir(parents=True, exist_ok=True)
    partial = SCRATCH / "-".join(target.parts)
    with partial.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(f"{target}: another process is making it; wait for it to end, or stop it") from error
        with aside(target, partial):
            yield partial


@contextmanager
def aside(target: Path, partial: Path) -> Iterator[None]:
    """Make `partial` an empty folder to be filled; it becomes `target` when the block ends well, and vanishes else."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace(path: Path, text: str) -> None:
    """Put a new file in the place of an old one, which may be a link into DVC's cache."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
