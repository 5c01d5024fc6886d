"""This machine: what bears on speed, and what may be missing."""

import functools
import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from pipeline import processes
from pipeline.errors import BuildError, ParamsError
from pipeline.records import Gpu, Machine

DECLARED = "ASSAY_GPUS"
"""Environment variable that says which GPUs there are, instead of the driver: `name:compute capability:MiB:driver`,
several of them joined by `;`, or `none`. For jobs that act on records of other machines, and to leave GPUs alone."""

QUERY = ("index", "uuid", "name", "compute_cap", "memory.total", "driver_version")
"""Properties that nvidia-smi tells; `nvidia-smi --help-query-gpu` explains them."""


def usable_cores() -> int:
    """Logical CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    """Return the machine's main memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fingerprint() -> Machine:
    """Describe the machine; two machines with equal fingerprints may share latency figures."""
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        cpu=_cpu_model(),
        cores=usable_cores(),
        memory_gib=round(memory_bytes() / 2**30),
        python=platform.python_version(),
        gpus=gpus(),
    )


def gpus() -> tuple[Gpu, ...]:
    """Ask the driver for the NVIDIA GPUs that this process may use, or read what ASSAY_GPUS declares.

    CUDA_VISIBLE_DEVICES hides some, as from every CUDA program. ParamsError for a declaration that cannot be read.
    """
    declared = os.environ.get(DECLARED)
    return _declared(declared) if declared is not None else _gpus(_visible(_told(driver())))


def installed() -> tuple[Gpu, ...]:
    """Like `gpus`, with those that CUDA_VISIBLE_DEVICES hides: tools are built for all of them."""
    declared = os.environ.get(DECLARED)
    return _declared(declared) if declared is not None else _gpus(_told(driver()))


def driver() -> Path | None:
    """Find nvidia-smi, without which no GPU can be used here, whatever is declared."""
    found = shutil.which("nvidia-smi")
    return Path(found) if found else None


@functools.cache
def _told(driver: Path | None) -> tuple[tuple[str, ...], ...]:
    """Ask once: it takes up to a second, and no GPU comes or goes while a process runs."""
    if driver is None:
        return ()
    command: list[str | Path] = [driver, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        lines = processes.run(command, what="nvidia-smi").splitlines()
    except BuildError as error:  # tools without a driver, as in many images
        tqdm.write(f"no GPU is used: {error}", file=sys.stderr)
        return ()
    return tuple(tuple(field.strip() for field in line.split(",")) for line in lines if line.strip())


def _gpus(rows: Sequence[Sequence[str]]) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(name=name, compute_capability=capability, memory_mib=_mib(memory), driver=driver)
        for _, _, name, capability, memory, driver in rows
    )


def _mib(told: str) -> int:
    """Read a GPU's memory; of one that has no memory but the machine's, as a GB10, the driver reports none."""
    return int(told) if told.isdigit() else memory_bytes() // 2**20


def _declared(text: str) -> tuple[Gpu, ...]:
    if text.strip().lower() == "none":
        return ()
    found = []
    for part in text.split(";"):
        fields = [field.strip() for field in part.split(":")]
        if len(fields) != 4 or not re.fullmatch(r"\d+\.\d+", fields[1]) or not fields[2].isdigit():
            raise ParamsError(
                f"{DECLARED}: {part.strip()!r} is no GPU; expected `none` or name:compute capability:MiB:driver, "
                'as in "NVIDIA L4:8.9:23034:570.10"'
            )
        name, capability, memory, driver = fields
        found.append(Gpu(name=name, compute_capability=capability, memory_mib=int(memory), driver=driver))
    return tuple(found)


def _visible(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Keep the rows that CUDA_VISIBLE_DEVICES names, in its order; it ends at the first one that is not there."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return list(rows)
    kept: list[Sequence[str]] = []
    for device in filter(None, (one.strip() for one in wanted.split(","))):
        found = [row for row in rows if row[0] == device or (device.startswith("GPU-") and row[1].startswith(device))]
        if not found:
            break
        kept += found
    return kept


def _cpu_model() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.processor() or "unknown"
