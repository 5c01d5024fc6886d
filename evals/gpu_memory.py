"""Memory in use on NVIDIA GPUs, from the driver's own books (NVML).

Libraries could only tell of their own allocations, each in another way, and of none in other processes; the driver
counts what a loaded model really takes: contexts, workspaces and what allocators keep.
"""

import contextlib
import threading
from collections.abc import Iterator

import pynvml

from evals import memory

INTERVAL_SECONDS = 0.02


class Peak:
    """Most bytes in use on all GPUs together, beyond those in use when the watch began; none where nobody watched."""

    def __init__(self) -> None:
        self.bytes: int | None = None


@contextlib.contextmanager
def watch(wanted: bool) -> Iterator[Peak]:
    """Look every INTERVAL_SECONDS while the block runs. Whatever else uses the GPUs meanwhile counts too."""
    peak = Peak()
    if not wanted:
        yield peak
        return
    with _nvml():
        before = _used()
        peak.bytes = 0
        done = threading.Event()

        def look() -> None:
            peak.bytes = max(peak.bytes or 0, _used() - before)

        def look_again() -> None:
            while not done.wait(INTERVAL_SECONDS):
                look()

        thread = threading.Thread(target=look_again, daemon=True)
        thread.start()
        try:
            yield peak
        finally:
            done.set()
            thread.join()
            look()


@contextlib.contextmanager
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _used() -> int:
    devices = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
    try:
        return sum(pynvml.nvmlDeviceGetMemoryInfo(device).used for device in devices)
    except pynvml.NVMLError_NotSupported:  # it has no memory but the machine's, as a GB10
        return memory.machine_used_bytes()
