"""Resident memory of processes, from the kernel's own books."""

import contextlib
import re
import resource
from pathlib import Path

PROC = Path("/proc")


def peak_rss_bytes() -> int:
    """Largest resident set since the process started (VmHWM); pages of memory-mapped weights count when touched."""
    return _kib(_status("self"), "VmHWM")


def rss_bytes() -> int:
    """Resident set now (VmRSS)."""
    return _kib(_status("self"), "VmRSS")


def machine_used_bytes() -> int:
    """Memory of the whole machine that is in use and not to be had for the asking, as caches are."""
    meminfo = (PROC / "meminfo").read_text()
    return _kib(meminfo, "MemTotal") - _kib(meminfo, "MemAvailable")


def peak_family_rss_bytes(pid: int) -> int:
    """Sum, over a process and its living descendants, of each one's largest resident set.

    A page that several share, such as a library's, counts for each, and they need not have peaked together: it is never
    less than what they held at once.
    """
    statuses = {}
    for folder in PROC.glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            if "VmHWM" in (status := _status(folder.name)):  # neither the kernel's own nor waiting to be buried
                statuses[int(folder.name)] = status
    family = {pid}
    while more := {one for one, text in statuses.items() if _number(text, "PPid") in family} - family:
        family |= more
    return sum(_kib(statuses[one], "VmHWM") for one in family)


def _status(process: str) -> str:
    return (PROC / process / "status").read_text()


def _kib(text: str, key: str) -> int:
    return _number(text, key) * 1024


def _number(text: str, key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+)", text, re.MULTILINE)
    assert match, f"the kernel tells no {key}"
    return int(match[1])


def peak_child_rss_bytes() -> int:
    """Largest resident set of any one child process that has ended and was waited for."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
