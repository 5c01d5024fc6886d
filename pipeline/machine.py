"""This machine, as far as it bears on speed."""

import os
import platform
import re
from pathlib import Path

from pipeline.records import Machine


def usable_cores() -> int:
    """Logical CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def fingerprint() -> Machine:
    """Describe the machine; two machines with equal fingerprints may share latency figures."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        cpu=_cpu_model(),
        cores=usable_cores(),
        memory_gib=round(pages / 2**30),
        python=platform.python_version(),
    )


def _cpu_model() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.processor() or "unknown"
