"""Memory of GPUs, against a driver that says what the test wants."""

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import pynvml
import pytest

from evals.gpu_memory import watch

T = TypeVar("T")

NVML = """
#include <cstdio>
struct memory { unsigned long long total, free, used; };
extern "C" {
int nvmlInitWithFlags(unsigned flags) { return INIT; }
int nvmlShutdown() { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(unsigned long)(index + 1);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory *found) {
    if (INFO) return INFO;
    unsigned long long first, second;
    FILE *file = fopen("USED", "r");
    int read = fscanf(file, "%llu %llu", &first, &second);
    fclose(file);
    found->used = (unsigned long)device == 1 ? first : second;
    return read == 2 ? 0 : 999;
}
}
"""


def beside(
    folder: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], T], status: int = 0, info: int = 0
) -> T:
    """Call work(folder) in a process whose driver reads what two GPUs hold from a file: one is loaded for good."""
    source, library = folder / "nvml.cpp", folder / "libnvidia-ml.so.1"
    text = NVML.replace("USED", str(folder / "used")).replace("INIT", str(status)).replace("INFO", str(info))
    source.write_text(text)
    subprocess.run(["c++", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(work, folder).result()


def hold(folder: Path, *used: int) -> None:
    partial = folder / "partial"
    partial.write_text(" ".join(map(str, used)))
    partial.replace(folder / "used")


def peaks(folder: Path) -> list[int | None]:
    hold(folder, 1000, 5)
    with watch(True) as long:
        hold(folder, 4000, 2005)
        until = time.monotonic() + 10
        while long.bytes != 5000 and time.monotonic() < until:
            time.sleep(0.01)
        hold(folder, 1500, 5)
    with watch(True) as short:
        hold(folder, 2500, 5)  # its end is looked at, however short the block
    return [long.bytes, short.bytes]


def growing(_: Path) -> int | None:
    with watch(True) as peak:
        held = np.ones(2**25)
        time.sleep(0.1)
    assert held.any()
    return peak.bytes


def unwatched(folder: Path) -> int | None:
    with watch(False) as peak:
        pass
    return peak.bytes


def test_the_peak_is_what_all_gpus_hold_beyond_what_they_held_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert beside(tmp_path, monkeypatch, peaks) == [5000, 1000]


def test_a_gpu_without_memory_of_its_own_takes_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GB10's driver knows no memory: what the machine has in use counts, here a quarter of a gigabyte."""
    found = beside(tmp_path, monkeypatch, growing, info=pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert found is not None
    assert 2**27 < found < 2**33


def test_without_a_gpu_there_is_no_peak_and_no_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert beside(tmp_path, monkeypatch, unwatched, status=9) is None


def test_a_driver_that_fails_is_an_error_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pynvml.NVMLError, match="Driver Not Loaded"):
        beside(tmp_path, monkeypatch, peaks, status=9)
