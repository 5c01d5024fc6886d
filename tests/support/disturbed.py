"""Machines that were quiet and busy while something was timed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from evals.interference import Interference, Other, Watch, Watched, Watching

QUIET = Interference(
    seconds=2.0, cores=2, wanted=2, other_cpu_seconds=0.02, others=(), steal_seconds=0.01, load_average=0.5,
    throttled_cpu_seconds=0.0, throttled_periods=0, hot_seconds=None, frequency=None, pressure_seconds=0.3,
    swapped_in_bytes=0,
)  # fmt: skip
COMPILER = Other(name="cc1plus", cpu_seconds=1.9)
BUSY = replace(QUIET, other_cpu_seconds=2.0, others=(COMPILER, Other(name="sshd", cpu_seconds=0.1)))


def watching(*found: Interference | None) -> Watching:
    """Return a watch that sees these, one after another."""
    left = iter(found)

    @contextmanager
    def one() -> Iterator[Watch]:
        seen = Watch()
        yield seen
        seen.interference = next(left)

    return one


def watched(*tries: Interference) -> Watched:
    """Return tries of which the last was kept."""
    return Watched(tries=tries, kept=len(tries) - 1)
