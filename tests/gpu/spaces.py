"""Spaces: folders with one checkpoint each, and the params.yaml that says what is done with it."""

import importlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline import machine, params
from pipeline.stages import inputs
from tests.bench.workspace import random_checkpoint
from tests.gpu import pieces
from tests.gpu.items import Work
from tests.gpu.layout import CHECKPOINT, ROOT

SOURCE = "source"
CPU = "cpu"
"""A folder in a space where the reference is the CPU's."""
STREAMS = (1, 8, 64, 256)
SMALL_STREAMS = (1, 4)


@dataclass(frozen=True)
class Space:
    """A checkpoint, and how much text goes through it."""

    name: str
    shape: Mapping[str, int] | None
    """The shape of random weights; None for the checkpoint that the pack brings."""
    small_shape: Mapping[str, int] | None
    group_size: int
    """64 where widths are no multiple of 128."""
    evaluation_windows: int
    calibration_windows: int = 128
    window_tokens: int = 512


SMALL = {"hidden": 256, "inner": 512, "layers": 2, "heads": 4, "context": 2048}

SPACES = {
    space.name: space
    for space in (
        # 1.15 billion parameters with the demo's vocabulary, and 7.1 billion.
        Space(
            "random", {"hidden": 2048, "inner": 8192, "layers": 18, "heads": 32, "context": 2048}, SMALL, 128, 16,
        ),
        Space("smollm2", None, None, 64, 64),
        Space(
            "seven", {"hidden": 4096, "inner": 14336, "layers": 32, "heads": 32, "context": 2048}, SMALL, 128, 8,
        ),
    )
}  # fmt: skip


def artifacts(space: Space) -> dict[str, dict[str, Any]]:
    """Name what is built of a checkpoint."""
    return {
        "bf16": {"backend": "safetensors", "from": "checkpoint", "dtype": "bfloat16"},
        "gptq-int4": {"backend": "gptq", "from": "checkpoint", "bits": 4, "group_size": space.group_size},
        "awq-int4": {"backend": "awq", "from": "checkpoint", "bits": 4, "group_size": space.group_size},
        "gguf-f16": {"backend": "gguf", "from": "checkpoint", "quantization": "F16"},
        "gguf-q4_k_m": {"backend": "gguf", "from": "checkpoint", "quantization": "Q4_K_M"},
    }


def prepare(work: Work, space: Space) -> None:
    """Lay out the checkpoint, the corpus and params.yaml, in the current folder."""
    began = time.perf_counter()
    if not Path(SOURCE).exists():
        _lay_out(work, space)
    size = sum(path.stat().st_size for path in Path(SOURCE).iterdir())
    work.add("checkpoint laid out", time.perf_counter() - began, "s", note=f"{size / 2**30:.2f} GiB")
    began = time.perf_counter()
    windows = write_params(work, space)["corpus"]["evaluation"]["windows"]
    inputs.outside(params.load())  # no DVC asks here for the code's state, and grimp is not on that machine
    for noun in ("checkpoint", "corpus"):
        stage(noun)
    work.add("checked, and texts cut", time.perf_counter() - began, "s", note=f"{windows} evaluation windows")


def _lay_out(work: Work, space: Space) -> None:
    partial = Path(f"{SOURCE}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shape = space.small_shape if work.small else space.shape
    if shape is None:
        folders = [work.pack / part / CHECKPOINT for part in ("1", "2")]
        if lost := pieces.missing(folders):
            raise SystemExit(
                f"{work.pack} lacks {len(lost)} files of the checkpoint, {lost[0]} first; bring the pack's second part "
                "too, or make it with `pack --checkpoint FOLDER`"
            )
        pieces.decode(folders, partial, SMALL["layers"] if work.small else None)
    else:
        random_checkpoint(ROOT / "models/demo", partial, "cuda" if on_gpu() else "cpu", **shape)
    partial.rename(SOURCE)


def on_gpu() -> bool:
    """Tell whether there is a GPU to work on."""
    return machine.driver() is not None and bool(machine.gpus())


def write_params(work: Work, space: Space, device: str | None = None) -> dict[str, Any]:
    """Write params.yaml into the current folder; the device is the GPU where there is one, unless it is named."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["checkpoint"]["source"] = SOURCE
    values["artifacts"] = artifacts(space)
    values["device"] = device or ("cuda" if on_gpu() else "cpu")
    values["corpus"]["window_tokens"] = 128 if work.small else space.window_tokens
    values["corpus"]["evaluation"]["windows"] = 4 if work.small else space.evaluation_windows
    values["corpus"]["calibration"]["windows"] = 8 if work.small else space.calibration_windows
    values["greedy"] = {"prompts": 4, "prompt_tokens": 32, "output_tokens": 16}
    values["serving"]["concurrency"] = list(SMALL_STREAMS if work.small else STREAMS)
    values["selection"]["concurrency"] = values["serving"]["concurrency"][0]
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return values


def stage(noun: str, *names: str) -> None:
    """Run a stage in this process; what fails is an error, and not a row as in a whole run."""
    getattr(importlib.import_module(f"pipeline.stages.{noun}"), noun)(params.load(), *names)


def beside() -> None:
    """Make the folder in which the reference is the CPU's, of the same checkpoint and texts, and go there."""
    here = Path(CPU)
    if not here.exists():
        partial = Path(f"{CPU}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name in ("inputs", "checkpoint", "corpus"):
            shutil.copytree(name, partial / name, symlinks=True)
        (partial / SOURCE).symlink_to(Path(SOURCE).resolve())
        partial.rename(here)
    os.chdir(here)
