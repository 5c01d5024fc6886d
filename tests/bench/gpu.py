"""What a GPU makes of the unquantized checkpoint, of calibration and of llama.cpp: times, memory, the machine's name.

On a machine with an NVIDIA GPU, its driver, and for llama.cpp nvcc (`export ASSAY_LLAMA_CPP_DEVICE=cpu` does without
it, and GGUF then runs on the CPU):

    make setup                        # takes the CUDA build of torch wherever pip's configuration offers it
    . .venv/bin/activate && python -m tests.bench gpu

Without `make setup`, in any environment where torch of constraints.txt sees the GPU, `pip install -c constraints.txt -e
'.[gptq,awq,gguf,dev]'` is enough for everything but llama.cpp, which `python -m pipeline toolchain` adds. What is not
installed is a row that says so. The checkpoint is of random weights, so no figure of quality means anything.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from evals import gpu_memory
from pipeline import machine
from pipeline.params import RECIPE
from pipeline.records import Build, Latency, Reference
from tests.bench.workspace import PYTHON, ROOT, Row, random_checkpoint, run, seconds

SHAPE = {"hidden": 2048, "inner": 8192, "layers": 18, "heads": 32, "context": 2048}
"""1.15 billion parameters with the demo's vocabulary."""

ARTIFACTS: dict[str, dict[str, Any]] = {
    "gptq-int4": {"backend": "gptq", "from": "checkpoint", "bits": 4},
    "awq-int4": {"backend": "awq", "from": "checkpoint"},
    "gguf-q4_k_m": {"backend": "gguf", "from": "checkpoint", "quantization": "Q4_K_M"},
}
SERVED = ("gguf-q4_k_m",)
"""Timed in process and behind the gateway; the others' engine on GPUs is vLLM, of an environment of its own."""

CALIBRATION_WINDOWS, EVALUATION_WINDOWS, WINDOW_TOKENS = 128, 32, 512


def gpu(scratch: Path) -> list[Row]:
    """Run the stages on a random checkpoint, each in its process; print rows for README.md as well."""
    gpus = machine.gpus() if machine.driver() else ()
    if not gpus:
        raise SystemExit("gpu: this machine has no NVIDIA GPU that nvidia-smi finds and CUDA_VISIBLE_DEVICES shows")
    _prepare(scratch)
    rows = [_measured(scratch, "reference", "reference")]
    device = Reference.load(scratch / "reference/assay.json").settings["device"]
    for name, recipe in ARTIFACTS.items():
        if missing := RECIPE.validate_python(recipe).requirements():
            rows.append((name, "not run", missing[0].what, missing[0].remedy))
            continue
        rows.append(_measured(scratch, f"{name}, built", "artifact", name))
        rows.append(_measured(scratch, f"{name}, scored", "quality", name))
        if name in SERVED:
            rows += _timed(scratch, name)
    _print(device, gpus[0].driver, rows)
    return rows


def _prepare(scratch: Path) -> None:
    """Lay out a folder to work in: a checkpoint, params.yaml, and the corpus."""
    random_checkpoint(ROOT / "models/demo", scratch / "random", **SHAPE)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["checkpoint"]["source"] = "random"
    params["artifacts"] = ARTIFACTS
    params["device"] = "cuda"
    params["corpus"]["window_tokens"] = WINDOW_TOKENS
    params["corpus"]["calibration"]["windows"] = CALIBRATION_WINDOWS
    params["corpus"]["evaluation"]["windows"] = EVALUATION_WINDOWS
    (scratch / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for stage in ("inputs", "checkpoint", "corpus"):
        _stage(scratch, stage)


def _stage(scratch: Path, *words: str) -> None:
    run([PYTHON, "-m", "pipeline", *words], cwd=scratch, env={**os.environ, "PYTHONPATH": str(ROOT)})


def _measured(scratch: Path, what: str, *words: str) -> Row:
    """Run a stage: its time, with starting Python and loading, and the most GPU memory that was taken meanwhile."""
    with gpu_memory.watch(True) as peak:
        took = seconds(lambda: _stage(scratch, *words))
    assert peak.bytes is not None
    device = "" if words[0] != "artifact" else Build.load(scratch / f"measurements/build/{words[1]}.json").device
    return what, f"{took:.1f} s", f"{peak.bytes / 2**30:.2f} GiB", device or ""


def _timed(scratch: Path, name: str) -> list[Row]:
    row = _measured(scratch, f"{name}, timed", "latency", name)
    found = Latency.load(scratch / f"measurements/latency/{name}.json")
    assert found.prefill_tokens_per_second is not None, "latency has run"
    assert found.decode_tokens_per_second is not None
    assert found.served is not None
    figures = {
        "prefill in process": found.prefill_tokens_per_second.median,
        "decode in process": found.decode_tokens_per_second.median,
        **{f"served, {one.concurrency} streams": one.output_tokens_per_second.value for one in found.served.levels},
    }
    return [row, *((f"{name}, {what}", f"{value:,.0f} tokens/s", "", "") for what, value in figures.items())]


def _print(device: str, driver: str, rows: Sequence[Row]) -> None:
    config = json.dumps({key: SHAPE[key] for key in ("hidden", "layers")})
    lines = [f"On {device}, driver {driver}, Llama of random weights {config}, windows of {WINDOW_TOKENS} tokens:", ""]
    lines += ["| what | measured | GPU memory |", "| :-- | --: | --: |"]
    lines += [f"| {what} | {measured} | {memory} |" for what, measured, memory, _ in rows]
    Console().print("\n".join(lines), soft_wrap=True, highlight=False)
