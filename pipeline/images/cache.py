"""The content-addressed build cache of this machine: bases, wheels, engine images."""

import fcntl
from collections.abc import Callable
from pathlib import Path

from pipeline import outputs, paths


def root() -> Path:
    """Return the folder that holds all of it; everything in it can be deleted at any time between builds."""
    return paths.user_cache() / "images"


def folder(name: str, fill: Callable[[Path], None]) -> Path:
    """Return a folder, calling `fill` with an empty one if it is not there yet; a second process waits for the first.

    It is filled under another name and renamed at the end, so an interrupted build is never taken for a finished one.
    `name` ends in the digest of everything that shapes the content.
    """
    root().mkdir(parents=True, exist_ok=True)
    target, partial = root() / name, root() / f"{name}.partial"
    with (root() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        with outputs.aside(target, partial):
            fill(partial)
    return target
