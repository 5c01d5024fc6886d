"""What else ran while something was timed: other processes, the hypervisor, a limit, heat, swap.

    with watch(wanted=2) as seen:
        ...
    problems(seen.interference)    # nothing, or in words what was too much

Threads of an engine wait for each other at each layer, so one core that is shared for a tenth of the time holds all of
them up. What is counted is therefore cores, and not a share of the machine.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from evals import kernel
from evals.kernel import Process

T = TypeVar("T")
N = TypeVar("N", int, float)

MOST_NAMED = 3
"""Processes that are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """Processes of one name, and what they took."""

    name: str
    """As the process table has it. Never the arguments, which may hold secrets."""
    cpu_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interference:
    """What else ran beside a measurement. None of a figure means that this machine does not show it."""

    seconds: float
    """How long was watched."""
    cores: int
    """Logical processors that this process may use; the figures are of these."""
    wanted: int
    """How many of these processors the measurement keeps busy."""
    other_cpu_seconds: float | None
    """Processor time of processes that are not ours: not this process, its descendants, or those it named."""
    others: tuple[Other, ...]
    """Those that took most; ended ones under the name of the process that waited for them."""
    steal_seconds: float | None
    """Processor time that the hypervisor gave to other machines."""
    load_average: float | None
    """The load average of the last minute, read at the end, with our own load in it."""
    throttled_cpu_seconds: float | None
    """Processor time for which a control group's limit stopped us; None, too, where there is no limit."""
    throttled_periods: int | None
    hot_seconds: float | None
    """For how long some core, or the package, slowed itself down for heat."""
    frequency: float | None
    """At the end, as a share of the processors' highest. It depends on the load, and is not judged."""
    pressure_seconds: float | None
    """For how long some process, ours included, waited for a processor. Not judged."""
    swapped_in_bytes: int | None
    """Read back from swap, for whatever process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A measurement that was repeated while too much else ran, and what ran beside each try."""

    tries: tuple[Interference, ...]
    """In their order; none where nothing could be watched."""
    kept: int
    """Number of the try whose figures were kept: the one with least beside it."""

    @property
    def interference(self) -> Interference | None:
        """What ran beside the try that was kept."""
        return self.tries[self.kept] if self.tries else None


LOST_CORES = 0.1
"""Most that others, the hypervisor and a limit may take together of the processors that are wanted. docs/report.md has
what more than that costs served throughput, from a part to nearly all of it, and what was not measured."""

RESOLUTION_SECONDS = 0.05
"""Less is not judged: the kernel counts in hundredths of a second, on each processor and for each process."""

HOT_SHARE = 0.1
"""Most of the time that a processor may slow itself down for heat. Not measured, but the same tenth."""

SWAP_BYTES_PER_SECOND = 2**20
"""Most that may be read back from swap. Not measured: 256 pages of 0.1 ms each hold up some thread for 3 % of a second.
"""

TRIES = 3
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each repetition. Measurements that belong together share them, so that on a machine that stays busy
they wait for 15 seconds in all, and not for each."""


def problems(one: Interference | None) -> tuple[str, ...]:
    """Say in words what was too much; nothing where the figures may be trusted, or where nothing could be seen."""
    if one is None or severity(one) <= 1:
        return ()
    lost, found = _lost(one), []
    share = max(sum(lost.values()) / 5, 0.01)
    words = {
        "others": f"other processes ran{_named(one)}",
        "steal": "the hypervisor gave to other machines (steal)",
        "limit": "a control group's processor limit withheld",
    }
    if sum(lost.values()) > _allowed(one):
        found += [
            f"{text} {lost[kind]:.2f} of {one.cores} processors" for kind, text in words.items() if lost[kind] >= share
        ]
    if _hot(one) > 1:
        found.append(f"the processor slowed itself down for heat {_hot(one) * HOT_SHARE:.0%} of the time")
    if _swapped(one) > 1:
        found.append(f"{(one.swapped_in_bytes or 0) / one.seconds / 2**20:.1f} MiB/s were read back from swap")
    return tuple(found)


def severity(one: Interference) -> float:
    """Return how much else ran, as a multiple of what is allowed; figures that this machine does not show are none."""
    return max(sum(_lost(one).values()) / _allowed(one), _hot(one), _swapped(one))


def unseen(one: Interference) -> tuple[str, ...]:
    """Name what this machine, or the container that this process is in, does not show."""
    named = {
        "other processes' time": one.other_cpu_seconds,
        "steal": one.steal_seconds,
        "processor limits": one.throttled_cpu_seconds,
        "heat": one.hot_seconds,
        "frequency": one.frequency,
        "processor pressure": one.pressure_seconds,
        "swap": one.swapped_in_bytes,
    }
    return tuple(name for name, value in named.items() if value is None)


def measure(
    once: Callable[[int], T],
    watching: "Watching",
    pauses: Iterator[float],
    say: Callable[[str], None],
    tries: int = TRIES,
) -> tuple[T, Watched]:
    """Measure by `once`, given the number of the try, again and again while too much else runs; keep the best try.

    There are `tries` at most, and no more repetitions than `pauses` are left: each takes one. A processor limit does
    not pass, so it is no reason to repeat. `say` is told why something is measured again.
    """
    found, seen = [], []
    for number in range(tries):
        with watching() as watch_:
            found.append(once(number))
        if watch_.interference is None:
            return found[-1], Watched(tries=(), kept=0)
        seen.append(watch_.interference)
        passing = replace(seen[-1], throttled_cpu_seconds=None)
        if not problems(passing) or number + 1 == tries or (pause := next(pauses, None)) is None:
            break
        say(f"{'; '.join(problems(passing))}: measured again in {pause:g} s, try {number + 2} of {tries}")
        time.sleep(pause)
    kept = min(range(len(seen)), key=lambda number: severity(seen[number]))
    return found[kept], Watched(tries=tuple(seen), kept=kept)


def _lost(one: Interference) -> dict[str, float]:
    """Return the processors that were wanted and not had, on average, by who took them."""
    spare = one.cores - one.wanted
    return {
        "others": max(0.0, (one.other_cpu_seconds or 0) / one.seconds - spare),
        "steal": (one.steal_seconds or 0) / one.seconds,
        "limit": (one.throttled_cpu_seconds or 0) / one.seconds,
    }


def _allowed(one: Interference) -> float:
    return max(LOST_CORES, RESOLUTION_SECONDS / one.seconds)


def _hot(one: Interference) -> float:
    return (one.hot_seconds or 0) / one.seconds / HOT_SHARE


def _swapped(one: Interference) -> float:
    return (one.swapped_in_bytes or 0) / one.seconds / SWAP_BYTES_PER_SECOND


def _named(one: Interference) -> str:
    """Name those that took a good part."""
    least = (one.other_cpu_seconds or 0) / 5
    names = ", ".join(other.name for other in one.others if other.cpu_seconds >= least)
    return f" ({names})" if names else " (not visible from here, or ended)"


class Watch:
    """What a watch saw: something once its block has ended, None where there is no Linux to ask."""

    def __init__(self) -> None:
        self.interference: Interference | None = None


Watching = Callable[[], AbstractContextManager[Watch]]
"""`watch`, with its arguments given."""


@contextmanager
def watch(
    *, wanted: int, roots: Sequence[int] = (), proc: Path = kernel.PROC, sys: Path = kernel.SYS
) -> Iterator[Watch]:
    """Note what else runs while the block does; it costs a few milliseconds before and after, and none in between.

    `wanted` is the number of processors that the block keeps busy, `roots` are processes that belong to it without
    descending from this one, as a container's do.
    """
    seen = Watch()
    if not (proc / "stat").exists():
        yield seen
        return
    cpus = sorted(os.sched_getaffinity(0))
    before = _Books.read(cpus, proc, sys)
    yield seen
    seen.interference = _difference(before, _Books.read(cpus, proc, sys), len(cpus), wanted, {os.getpid(), *roots})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Books:
    """Everything that the kernel tells at one moment."""

    clock: float
    times: kernel.Times | None
    table: Mapping[int, Process]
    load: float | None
    throttling: kernel.Throttling | None
    heat: Mapping[Path, float]
    frequency: float | None
    pressure: float | None
    swapped_in: int | None

    @classmethod
    def read(cls, cpus: Sequence[int], proc: Path, sys: Path) -> "_Books":
        return cls(
            clock=time.monotonic(),
            frequency=kernel.frequency(cpus, sys),
            times=kernel.times(cpus, proc),
            table=kernel.processes(proc),
            load=kernel.load(proc),
            throttling=kernel.throttling(proc, sys),
            heat=kernel.heat(cpus, sys),
            pressure=kernel.pressure(proc),
            swapped_in=kernel.swapped_in(proc),
        )


def _difference(before: _Books, after: _Books, cores: int, wanted: int, roots: set[int]) -> Interference:
    seconds = after.clock - before.clock
    ours = kernel.family(before.table, roots) | kernel.family(after.table, roots)
    other, steal = _processors(before, after, seconds * cores, ours)
    throttled = after.throttling, before.throttling or kernel.Throttling(seconds=0, periods=0)
    heat = [value - before.heat.get(path, value) for path, value in after.heat.items()]
    return Interference(
        seconds=seconds,
        cores=cores,
        wanted=min(wanted, cores),
        other_cpu_seconds=other,
        others=_others(before.table, after.table, ours),
        steal_seconds=steal,
        load_average=after.load,
        throttled_cpu_seconds=throttled[0].seconds - throttled[1].seconds if throttled[0] else None,
        throttled_periods=throttled[0].periods - throttled[1].periods if throttled[0] else None,
        hot_seconds=max(heat, default=None),
        frequency=after.frequency,
        pressure_seconds=_grown(before.pressure, after.pressure),
        swapped_in_bytes=_grown(before.swapped_in, after.swapped_in),
    )


def _processors(before: _Books, after: _Books, expected: float, ours: set[int]) -> tuple[float | None, float | None]:
    """Return what others ran and what was stolen; None where the kernel's books do not move with the clock."""
    if before.times is None or after.times is None:
        return None, None
    if after.times.all - before.times.all < expected / 2:  # a sandbox's books stand still
        return None, None
    all_, mine = after.times.processes - before.times.processes, _spent(after, ours) - _spent(before, ours)
    return max(0.0, all_ - mine), after.times.steal - before.times.steal


def _spent(books: _Books, pids: set[int]) -> float:
    """Add up all that some processes and their ended descendants ever ran."""
    return sum(one.own + one.waited for pid, one in books.table.items() if pid in pids)


def _grown(before: N | None, after: N | None) -> N | None:
    return None if before is None or after is None else after - before


def _others(before: Mapping[int, Process], after: Mapping[int, Process], ours: set[int]) -> tuple[Other, ...]:
    """Name the processes, none of ours, that ran most."""
    still = {pid for pid, one in after.items() if pid in before and before[pid].started == one.started}
    gone: defaultdict[int, float] = defaultdict(float)
    """What ended processes had run before, which those that are left and waited for them now count as well."""
    for pid, one in before.items():
        if pid not in still:
            heir = one.parent
            while heir in before and heir not in still:
                heir = before[heir].parent
            gone[heir] += one.own + one.waited
    ran: defaultdict[str, float] = defaultdict(float)
    for pid in after.keys() - ours:
        earlier = before[pid] if pid in still else None
        own, waited = after[pid].own, after[pid].waited
        if earlier:
            own, waited = own - earlier.own, max(0.0, waited - earlier.waited - gone[pid])
        ran[after[pid].name] += own + waited
    most = sorted(ran.items(), key=lambda item: -item[1])[:MOST_NAMED]
    return tuple(Other(name=name, cpu_seconds=spent) for name, spent in most if spent > 0)
