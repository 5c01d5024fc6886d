"""The machine: its GPU, what the driver and torch say of it, and how fast it copies and multiplies."""

import os
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from statistics import median
from typing import TYPE_CHECKING

from tests.gpu.items import Work

if TYPE_CHECKING:
    import torch

ROUNDS, WARMUP = 10, 3
PACKAGES = ("torch", "transformers", "gptqmodel", "numpy", "triton", "pydantic", "llama-cpp-python")


def measure(work: Work) -> None:
    """Measure on the GPU, or in a small size on the CPU."""
    import torch

    from pipeline import compute, machine

    found = compute.here(device="cpu" if work.small and not machine.driver() else None)
    place = torch.device("cuda" if found.gpus else "cpu")
    if not (work.small or found.gpus):
        raise SystemExit("nvidia-smi finds no GPU here; `--small` does everything in a small size on the CPU")
    fingerprint = machine.fingerprint()
    work.about.update(
        device=found.name,
        driver=found.gpus[0].driver if found.gpus else "none",
        cpu=f"{fingerprint.cpu}, {fingerprint.cores} cores",
        python=fingerprint.python,
        **{name: _version(name) for name in PACKAGES},
    )
    for gpu in found.gpus:
        work.add("GPU memory", gpu.memory_mib / 1024, "GiB", note=f"{gpu.name}, {gpu.compute_capability}")
    if found.gpus and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} cannot use the {found.name} that is here")
    _copies(work, place)
    _products(work, place)
    if found.gpus:
        _transfer(work)
    work.add("cores", os.cpu_count() or 0, "logical", note=fingerprint.cpu)


def _copies(work: Work, place: "torch.device") -> None:
    import torch

    size = 2**26 if work.small else 2**33
    source = torch.zeros(size, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), place)
    work.add("copy within memory, read and written", 2 * size / seconds / 1e9, "GB/s")


def _products(work: Work, place: "torch.device") -> None:
    """Multiply square matrices of random numbers."""
    import torch

    side = 512 if work.small else 8192
    dtypes = (torch.bfloat16, torch.float32)
    for dtype in dtypes:
        left, right = (torch.randn(side, side, device=place, dtype=dtype) for _ in range(2))
        torch.set_float32_matmul_precision("highest")
        seconds = _seconds(partial(torch.matmul, left, right), place)
        name = str(dtype).removeprefix("torch.")
        work.add(f"product of {side} x {side} in {name}", 2 * side**3 / seconds / 1e12, "TFLOP/s")


def _transfer(work: Work) -> None:
    import torch

    size = 2**30
    source = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device="cuda")
    seconds = _seconds(lambda: target.copy_(source), torch.device("cuda"))
    work.add("copy from main memory, pinned", size / seconds / 1e9, "GB/s")


def _seconds(action: Callable[[], object], place: "torch.device") -> float:
    """Return the median time of an action, once it is warm."""
    import torch

    times = []
    for _ in range(WARMUP + ROUNDS):
        began = time.perf_counter()
        action()
        if place.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return median(times[WARMUP:])


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"
