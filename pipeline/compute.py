"""What models run on here: CPU threads, and GPUs where there are any."""

import os
from dataclasses import dataclass
from typing import Literal

from pipeline import machine
from pipeline.errors import RequirementError
from pipeline.records import Gpu

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """What a model is given to run on."""

    threads: int
    """CPU threads."""
    gpus: tuple[Gpu, ...] = ()
    """Where weights and arithmetic go; empty for the CPU."""

    @property
    def device(self) -> Device:
        """As torch calls it, and the flags of our own commands."""
        return "cuda" if self.gpus else "cpu"

    @property
    def name(self) -> str:
        """As Runner.settings and records have it: "cpu", or the GPU's name."""
        return self.gpus[0].name if self.gpus else "cpu"


def here(threads: int | None = None, device: Device | None = None) -> Compute:
    """Choose on this machine: None is every core that this process may use, and GPUs where there are any.

    GPUs that are only declared (ASSAY_GPUS), with no driver behind them, run nothing. With a driver, those that are not
    to be used are hidden from this process and its children: libraries would take them unasked, some for a part of the
    work. RequirementError where `cuda` is asked for and there is none.
    """
    driver = machine.driver()
    found = machine.gpus() if driver and device != "cpu" else ()
    if driver and not found:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if device == "cuda" and not found:
        raise RequirementError(
            "device cuda was asked for, and nvidia-smi finds no GPU that this process may use; "
            "install NVIDIA's driver, look at CUDA_VISIBLE_DEVICES and ASSAY_GPUS, or set device: cpu"
        )
    return Compute(threads=threads or machine.usable_cores(), gpus=found)
