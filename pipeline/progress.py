"""How far, and how long left: on a terminal a bar, in a log a line now and then. Always on stderr."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from pipeline import activity

LOG_INTERVAL_SECONDS = 10.0

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, showing `what`, how many of how many, and the time left."""
    with activity.doing(what):
        yield from tqdm(items, total=total, **_look(what))


def note(text: str) -> None:
    """Say something beside the bars, in a line of its own."""
    tqdm.write(text, file=sys.stderr)


def bytes_bar(what: str, total: int) -> "tqdm[NoReturn]":
    """Return a bar to update by bytes: how many of how many, how fast, the time left. Use it in a `with`."""
    return tqdm(total=total, unit="B", unit_scale=True, **_look(what))


@contextmanager
def steps(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that shows how many of how many are done, for work that counts by itself."""
    bar: tqdm[NoReturn] | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or tqdm(total=total, **_look(what))
        bar.total = total
        bar.update(done - bar.n)

    try:
        with activity.doing(what):
            yield show
    finally:
        if bar is not None:
            bar.close()


def _look(what: str) -> dict[str, Any]:
    interval = 0.2 if sys.stderr.isatty() else LOG_INTERVAL_SECONDS
    return {"desc": what, "mininterval": interval, "dynamic_ncols": True, "leave": False}
