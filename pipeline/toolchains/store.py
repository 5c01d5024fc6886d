"""Where toolchains lie: `${XDG_CACHE_HOME:-~/.cache}/assay/toolchains/`, for all checkouts on the machine."""

import errno
import fcntl
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from pipeline import paths
from pipeline.errors import StorageError


def root() -> Path:
    """Return the folder of all toolchains; everything in it can be deleted at any time between builds."""
    return paths.user_cache() / "toolchains"


@contextmanager
def locked(what: str, free_bytes: int) -> Iterator[None]:
    """Keep other builds of `what` waiting until the block ends; StorageError where the disk cannot take it."""
    folder = root()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{what}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tqdm.write(f"another process is building {what}; waiting for it", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{folder}: no space left to build {what}; it needs {free_bytes >> 20} MiB") from error
        raise StorageError(f"{folder}: {what} cannot be built there: {error}") from error


def check_free(what: str, free_bytes: int) -> None:
    """Tell before the work that there is no room for it."""
    free = shutil.disk_usage(root()).free
    if free < free_bytes:
        raise StorageError(f"{root()}: {free >> 20} MiB free, building {what} needs {free_bytes >> 20}")
