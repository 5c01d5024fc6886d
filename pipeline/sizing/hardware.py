"""Named hardware (pipeline/hardware.toml), and the machine that this runs on."""

import difflib
import functools
import shutil
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np

from pipeline import machine
from pipeline.errors import ParamsError
from pipeline.records import Gpu

TABLE = Path(__file__).parents[1] / "hardware.toml"
DETECT = "detect"
"""The name of the machine that this runs on."""

USABLE = {"cpu": 0.95, "unified": 0.75, "gpu": 0.95}
"""Share of the memory that a model may take: the rest is the system's, on Apple what Metal leaves to it by default."""

PROBE_BYTES = 64 * 2**20
PROBE_SECONDS = 0.25
"""How much each thread reads, and for how long in all, to measure bandwidth: many times any cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One machine."""

    name: str
    kind: Literal["cpu", "unified", "gpu"]
    memory_bytes: int
    """Memory of one device: of one GPU where there are GPUs."""
    bandwidth: float | None
    """Bytes per second of one device; None where nobody knows."""
    source: str
    """Where the figures are from."""
    count: int = 1
    """GPUs."""
    gpu: str | None = None
    """As nvidia-smi names it."""
    compute_capability: str | None = None
    shared: bool = False
    """GPU and CPU have one memory."""
    host_memory_bytes: int | None = None
    """Main memory; None for a table's entry with GPUs, since it is rented to size."""
    disk_bytes: int | None = None
    """Free where artifacts go; None if unknown."""
    price_per_hour: float | None = None
    price_source: str | None = None

    @property
    def usable_bytes(self) -> int:
        """What a model may take, of all devices together."""
        return int(self.memory_bytes * self.count * USABLE[self.kind])

    @property
    def build_bytes(self) -> int | None:
        """Main memory that a build may take; None if unknown."""
        if self.host_memory_bytes is not None:
            return int(self.host_memory_bytes * USABLE["cpu"])
        return int(self.memory_bytes * USABLE["cpu"]) if self.kind != "gpu" or self.shared else None

    @property
    def host(self) -> "Hardware | None":
        """The machine without its GPUs, for what does not use them; None where its main memory is unknown."""
        if self.kind != "gpu":
            return self
        memory = self.memory_bytes if self.shared else self.host_memory_bytes
        if memory is None:
            return None
        bandwidth = self.bandwidth if self.shared else None
        return replace(self, kind="cpu", memory_bytes=memory, bandwidth=bandwidth, count=1, gpu=None)

    @property
    def total_bandwidth(self) -> float | None:
        """Return the bandwidth of all devices together: each reads its part of the weights at the same time."""
        return None if self.bandwidth is None else self.bandwidth * self.count

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """As recipes are asked about."""
        if self.gpu is None or self.compute_capability is None:
            return ()
        one = Gpu(
            name=self.gpu,
            compute_capability=self.compute_capability,
            memory_mib=self.memory_bytes // 2**20,
            driver="unknown",
        )
        return (one,) * self.count


@functools.cache
def table() -> tuple[Hardware, ...]:
    """Read the table, in its own order."""
    raw = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return tuple(_entry(one, raw["sources"], raw["prices"]) for one in raw["machine"])


def _entry(one: dict[str, Any], sources: dict[str, str], prices: dict[str, str]) -> Hardware:
    return Hardware(
        name=one["name"],
        kind=one["kind"],
        memory_bytes=one["memory_mib"] * 2**20,
        bandwidth=one["bandwidth"] * 1e9,
        source=sources[one["source"]],
        count=one.get("count", 1),
        gpu=one.get("gpu"),
        compute_capability=one.get("compute_capability"),
        shared=one.get("shared", False),
        price_per_hour=one.get("price_per_hour"),
        price_source=prices[one["price_source"]] if "price_source" in one else None,
    )


def find(name: str, gpus: bool = True) -> Hardware:
    """Return hardware by name, or this machine for `detect`. ParamsError for a name that is not in the table."""
    if name == DETECT:
        return detect(gpus=gpus)
    found = next((one for one in table() if one.name == name), None)
    if found is not None:
        return found
    names = [one.name for one in table()]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {DETECT}, {', '.join(names)}"
    raise ParamsError(f"--hardware: {name!r} is not in {TABLE.name}; {hint}")


def detect(folder: Path = Path(), *, gpus: bool = True, measure: bool = True) -> Hardware:
    """Describe this machine: memory that this process may use, free disk, GPUs and their bandwidth by the table.

    The bandwidth of main memory is measured, which takes a moment and `measure` may leave out.
    """
    memory, disk = memory_bytes(), shutil.disk_usage(folder).free
    found = machine.gpus() if gpus else ()
    if not found:
        return Hardware(
            name=DETECT,
            kind="cpu",
            memory_bytes=memory,
            bandwidth=read_bandwidth() if measure else None,
            source=f"bandwidth measured: {machine.usable_cores()} threads of numpy reading for {PROBE_SECONDS} s",
            disk_bytes=disk,
        )
    known = by_gpu(found[0].name)
    return Hardware(
        name=DETECT,
        kind="gpu",
        memory_bytes=min(gpu.memory_mib for gpu in found) * 2**20,
        bandwidth=known.bandwidth if known else None,
        source=known.source if known else f"bandwidth unknown: {found[0].name} is not in {TABLE.name}",
        count=len(found),
        gpu=found[0].name,
        compute_capability=found[0].compute_capability,
        shared=known is not None and known.shared,
        host_memory_bytes=memory,
        disk_bytes=disk,
        price_per_hour=known.price_per_hour * len(found) / known.count if known and known.price_per_hour else None,
        price_source=known.price_source if known else None,
    )


def by_gpu(name: str) -> Hardware | None:
    """Return the first entry with such a GPU, one with a price before others."""
    found = [one for one in table() if one.gpu == name]
    return min(found, key=lambda one: one.price_per_hour is None) if found else None


def memory_bytes() -> int:
    """Return the main memory that this process may use: the machine's, or what its control group is held to."""
    limits = [machine.memory_bytes()]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(path).is_file() and (text := Path(path).read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def read_bandwidth() -> float:
    """Measure how many bytes a second all cores together read from main memory: the best of a few rounds."""
    threads = machine.usable_cores()
    data = [np.ones(PROBE_BYTES // 8, np.int64) for _ in range(threads)]  # ones: untouched pages read as one zero page
    best, end = 0.0, perf_counter() + PROBE_SECONDS
    with ThreadPoolExecutor(threads) as pool:
        while perf_counter() < end:
            start = perf_counter()
            list(pool.map(np.max, data))  # numpy lets go of the interpreter's lock meanwhile
            best = max(best, threads * PROBE_BYTES / (perf_counter() - start))
    return best
