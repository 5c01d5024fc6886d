"""What this process is doing, noted where the process that supervises it reads it after a crash.

Where nobody supervises, as in tests, notes go nowhere.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

BYTES = 512

_board: mmap.mmap | None = None
_now = ""


def share() -> mmap.mmap:
    """Return memory that holds the notes from now on, also those of a process that is forked off."""
    global _board
    _board = mmap.mmap(-1, BYTES)
    return _board


def note(what: str) -> None:
    """Note what begins now, such as "loading gguf-q8_0"."""
    global _now
    _now = what
    if _board is not None:
        _board[:] = what.encode()[:BYTES].ljust(BYTES, b"\0")


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Note `what` until the block ends, then again what was before it."""
    before = _now
    note(what)
    try:
        yield
    finally:
        note(before)


def read(board: mmap.mmap) -> str:
    """Return the last note."""
    return board[:].rstrip(b"\0").decode(errors="ignore")
