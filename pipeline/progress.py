"""How far, and how long left: on a terminal a bar, in a log a line now and then. Always on stderr."""

import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn, TypeVar

from tqdm import tqdm

LOG_INTERVAL_SECONDS = 10.0

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, showing `what`, how many of how many, and the time left."""
    interval = 0.2 if sys.stderr.isatty() else LOG_INTERVAL_SECONDS
    yield from tqdm(items, desc=what, total=total, mininterval=interval, dynamic_ncols=True, leave=False)


def bytes_bar(what: str, total: int) -> "tqdm[NoReturn]":
    """Return a bar to update by bytes: how many of how many, how fast, the time left. Use it in a `with`."""
    interval = 0.2 if sys.stderr.isatty() else LOG_INTERVAL_SECONDS
    return tqdm(
        desc=what, total=total, unit="B", unit_scale=True, mininterval=interval, dynamic_ncols=True, leave=False
    )
