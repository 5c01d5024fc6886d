"""Memory in use on NVIDIA GPUs, from the driver's own books (NVML).

Libraries could only tell of their own allocations, each in another way, and of none in other processes; the driver
counts what a loaded model really takes: contexts, workspaces and what allocators keep.
"""

import contextlib
import ctypes
import threading
from collections.abc import Iterator

LIBRARY = "libnvidia-ml.so.1"
"""Comes with the driver."""

INTERVAL_SECONDS = 0.02


class Peak:
    """Most bytes in use on all GPUs together, beyond those in use when the watch began; none where nobody watched."""

    def __init__(self) -> None:
        self.bytes: int | None = None


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@contextlib.contextmanager
def watch(wanted: bool, library: str = LIBRARY) -> Iterator[Peak]:
    """Look every INTERVAL_SECONDS while the block runs. Whatever else uses the GPUs meanwhile counts too."""
    peak = Peak()
    if not wanted:
        yield peak
        return
    with _nvml(library) as nvml:
        before = _used(nvml)
        peak.bytes = 0
        done = threading.Event()

        def look() -> None:
            peak.bytes = max(peak.bytes or 0, _used(nvml) - before)

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
def _nvml(library: str) -> Iterator[ctypes.CDLL]:
    nvml = ctypes.CDLL(library)
    _call(nvml, "nvmlInit_v2")
    try:
        yield nvml
    finally:
        _call(nvml, "nvmlShutdown")


def _used(nvml: ctypes.CDLL) -> int:
    count = ctypes.c_uint()
    _call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    total = 0
    for index in range(count.value):
        device, memory = ctypes.c_void_p(), _Memory()
        _call(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
        _call(nvml, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
        total += int(memory.used)
    return total


def _call(nvml: ctypes.CDLL, name: str, *arguments: object) -> None:
    if status := getattr(nvml, name)(*arguments):
        raise OSError(f"{name} of NVIDIA's driver returned {status}")
