"""Memory of GPUs, against a driver that says what the test wants."""

import subprocess
import time
from pathlib import Path

import pytest

from evals.gpu_memory import watch

NVML = """
#include <cstdio>
struct memory { unsigned long long total, free, used; };
extern "C" {
int nvmlInit_v2() { return INIT; }
int nvmlShutdown() { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(unsigned long)(index + 1);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory *found) {
    unsigned long long first, second;
    FILE *file = fopen("USED", "r");
    int read = fscanf(file, "%llu %llu", &first, &second);
    fclose(file);
    found->used = (unsigned long)device == 1 ? first : second;
    return read == 2 ? 0 : 999;
}
}
"""


def driver(folder: Path, status: int = 0) -> str:
    """Build a driver's library that reads what two GPUs hold from a file."""
    source, library = folder / "nvml.cpp", folder / "nvml.so"
    source.write_text(NVML.replace("USED", str(folder / "used")).replace("INIT", str(status)))
    subprocess.run(["c++", "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


def hold(folder: Path, *used: int) -> None:
    partial = folder / "partial"
    partial.write_text(" ".join(map(str, used)))
    partial.replace(folder / "used")


def test_the_peak_is_what_all_gpus_hold_beyond_what_they_held_before(tmp_path: Path) -> None:
    library = driver(tmp_path)
    hold(tmp_path, 1000, 5)
    with watch(True, library) as peak:
        hold(tmp_path, 4000, 2005)
        until = time.monotonic() + 10
        while peak.bytes != 5000 and time.monotonic() < until:
            time.sleep(0.01)
        hold(tmp_path, 1500, 5)
    assert peak.bytes == 5000
    with watch(True, library) as peak:
        hold(tmp_path, 2500, 5)  # its end is looked at, however short the block
    assert peak.bytes == 1000


def test_without_a_gpu_there_is_no_peak_and_no_driver_is_asked() -> None:
    with watch(False, "no such library") as peak:
        pass
    assert peak.bytes is None


def test_a_driver_that_fails_is_an_error_with_its_status(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nvmlInit_v2 of NVIDIA's driver returned 9"), watch(True, driver(tmp_path, 9)):
        pass
