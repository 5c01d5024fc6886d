"""Resident memory of this process, from the kernel's own books."""

import re
import resource
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_rss_bytes() -> int:
    """Largest resident set since the process started (VmHWM); pages of memory-mapped weights count when touched."""
    return _status("VmHWM")


def rss_bytes() -> int:
    """Resident set now (VmRSS)."""
    return _status("VmRSS")


def _status(key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert match, f"{STATUS} has no {key}"
    return int(match[1]) * 1024


def peak_child_rss_bytes() -> int:
    """Largest resident set of any one child process that has ended and was waited for."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
