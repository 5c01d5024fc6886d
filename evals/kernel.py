"""Linux's own books of who uses the processors: all times in seconds, None where the kernel or a container hides one.

Every function takes the roots of /proc and /sys, so that books recorded on other machines can be read.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC, SYS = Path("/proc"), Path("/sys")

TICKS = os.sysconf("SC_CLK_TCK")
"""Units of a second in which /proc counts processor time: 100 of them."""

USER, NICE, SYSTEM, STEAL, KNOWN = 0, 1, 2, 7, 8
"""Columns of /proc/stat. Guests' times stand after the known ones, and within user and nice already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A line of the process table."""

    pid: int
    parent: int
    name: str
    """At most 15 characters, which hold no arguments."""
    started: int
    """Ticks since boot: tells a process from a later one with its number."""
    own: float
    """Processor time of its threads."""
    waited: float
    """Processor time of its descendants that ended and were waited for: an ended process' time is here and nowhere
    else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What some processors did since boot, added up."""

    processes: float
    """Ran processes, the kernel's own among them; interrupts are nobody's, and not in it."""
    steal: float
    """Were wanted and not given by the hypervisor."""
    all: float
    """Everything, idle time included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttling:
    """How a control group's processor limit held it up."""

    seconds: float
    """Summed over the processors that were stopped."""
    periods: int


def processes(proc: Path = PROC) -> dict[int, Process]:
    """Read the process table: about 15 µs a process."""
    found = {}
    for folder in proc.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it ended meanwhile
                process = _process((folder / "stat").read_text(errors="replace"))
                found[process.pid] = process
    return found


def _process(text: str) -> Process:
    """Parse /proc/PID/stat, where only the last bracket ends the name, which may hold brackets and spaces itself."""
    before, _, after = text.rpartition(")")
    pid, _, name = before.partition(" (")
    fields = after.split()
    user, system, waited_user, waited_system = (int(field) / TICKS for field in fields[11:15])
    return Process(
        pid=int(pid),
        parent=int(fields[1]),
        name=name,
        started=int(fields[19]),
        own=user + system,
        waited=waited_user + waited_system,
    )


def family(table: Mapping[int, Process], roots: Iterable[int]) -> set[int]:
    """Return the processes that descend from the roots, and these themselves."""
    found = {root for root in roots if root in table}
    while more := {pid for pid, process in table.items() if process.parent in found} - found:
        found |= more
    return found


def times(cpus: Iterable[int], proc: Path = PROC) -> Times | None:
    """Add up what these processors did."""
    wanted = {f"cpu{number}" for number in cpus}
    rows = []
    for line in _lines(proc / "stat"):
        name, *values = line.split()
        if name in wanted:
            rows.append([int(value) / TICKS for value in values[:KNOWN]])
    if not rows or any(len(row) < KNOWN for row in rows):
        return None
    sums = [sum(column) for column in zip(*rows, strict=True)]
    return Times(processes=sums[USER] + sums[NICE] + sums[SYSTEM], steal=sums[STEAL], all=sum(sums))


def load(proc: Path = PROC) -> float | None:
    """Return the load average of the last minute: processes that ran or wanted to, and those that waited for a disk."""
    return next((float(line.split()[0]) for line in _lines(proc / "loadavg")), None)


def pressure(proc: Path = PROC) -> float | None:
    """Return for how long, since boot, some process waited for a processor (pressure stall information)."""
    for line in _lines(proc / "pressure/cpu"):
        kind, *pairs = line.split()
        if kind == "some":
            return int(dict(pair.split("=") for pair in pairs)["total"]) / 1e6
    return None


def swapped_in(proc: Path = PROC) -> int | None:
    """Return the bytes that were read back from swap since boot."""
    page = os.sysconf("SC_PAGE_SIZE")
    return next((page * int(line.split()[1]) for line in _lines(proc / "vmstat") if line.startswith("pswpin ")), None)


def throttling(proc: Path = PROC, sys: Path = SYS) -> Throttling | None:
    """Tell how processor limits held up our control group or one that it lies in: of these the one held up most.

    A limit of one group stops all that lie in it, which their own books do not tell. Zero where there is no limit, None
    where no group's books can be read.
    """
    found = [one for folder in _groups(proc, sys) if (one := _throttling(folder / "cpu.stat")) is not None]
    return max(found, key=lambda one: one.seconds, default=None)


def _groups(proc: Path, sys: Path) -> Iterator[Path]:
    """Yield the folders of our control group and of those around it, of version 1 and of version 2."""
    paths = {}
    for line in _lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            paths[bool(controllers)] = PurePosixPath(path)
    for line in _lines(proc / "self/mountinfo"):
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _, options = after.split()[:3]
        first = kind == "cgroup" and "cpu" in options.split(",")
        if not (first or kind == "cgroup2") or first not in paths:
            continue
        top = sys / PurePosixPath(mount).relative_to("/sys") if mount.startswith("/sys/") else Path(mount)
        group = paths[first]
        # A container may see its own group as the mount's root, while its path is told from outside.
        inside = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
        for part in (inside, *inside.parents):
            yield top / part


def _throttling(path: Path) -> Throttling | None:
    values = {key: int(value) for key, value in map(str.split, _lines(path))}
    if not values:
        return None
    seconds = values.get("throttled_usec", 0) / 1e6 + values.get("throttled_time", 0) / 1e9  # version 2, version 1
    return Throttling(seconds=seconds, periods=values.get("nr_throttled", 0))  # the machine's root tells neither


def heat(cpus: Iterable[int], sys: Path = SYS) -> dict[Path, float]:
    """Return for how long each core and package has slowed itself down for heat: Intel's processors tell it."""
    kinds = ("core", "package")
    files = [_cpu(sys, cpu) / f"thermal_throttle/{kind}_throttle_total_time_ms" for cpu in cpus for kind in kinds]
    return {path: value / 1e3 for path in files if (value := _number(path)) is not None}


def frequency(cpus: Iterable[int], sys: Path = SYS) -> float | None:
    """Return how fast the processors run now, as a share of their highest frequency."""
    shares = []
    for cpu in cpus:
        now, most = (_number(_cpu(sys, cpu) / f"cpufreq/{name}") for name in ("scaling_cur_freq", "cpuinfo_max_freq"))
        if now is not None and most:
            shares.append(now / most)
    return sum(shares) / len(shares) if shares else None


def _cpu(sys: Path, number: int) -> Path:
    return sys / f"devices/system/cpu/cpu{number}"


def _number(path: Path) -> int | None:
    return next((int(line) for line in _lines(path) if line.isdigit()), None)


def _lines(path: Path) -> list[str]:
    """Return a file's lines, none where it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
