"""Peak memory of each conversion on checkpoints of random weights."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.bench.workspace import PYTHON, Row, random_checkpoint, row, run, workspace

MOST_GGUF = 1.3


def memory(scratch: Path) -> list[Row]:
    """Build artifacts from random checkpoints; peak resident memory of the largest process over the weights' bytes.

    Every process also carries Python and its libraries, a quarter to three quarters of a gigabyte; the checkpoint for
    GGUF is large enough for that to fade. The other formats take theirs from a smaller one, for the time they take.
    """
    large, small = ("gguf-f16", "gguf-q4_k_m"), ("gptq-int4", "awq-int4", "onnx-int8", "onnx-int4")
    rows = _memory(scratch / "large", large, MOST_GGUF, hidden=2048, inner=5632, layers=28, heads=32)
    return rows + _memory(scratch / "small", small, None, hidden=1280, inner=3584, layers=6, heads=20)


def _memory(folder: Path, artifacts: Sequence[str], limit: float | None, **shape: int) -> list[Row]:
    clone = workspace(folder, artifacts)
    checkpoint = clone / "models/random"
    random_checkpoint(clone / "models/demo", checkpoint, **shape)
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["checkpoint"]["source"] = "models/random"
    for split in ("calibration", "evaluation"):
        params["corpus"][split]["windows"] = 8
    (clone / "params.yaml").write_text(yaml.safe_dump(params))
    bytes_ = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    for stage in ("inputs", "checkpoint", "corpus"):
        run([PYTHON, "-m", "pipeline", stage], cwd=clone, env=environment)
    rows = []
    for name in artifacts:
        start = time.perf_counter()
        run([PYTHON, "-m", "pipeline", "artifact", name], cwd=clone, env=environment)
        seconds = time.perf_counter() - start
        peak = json.loads((clone / f"measurements/build/{name}.json").read_text())["peak_rss_bytes"]
        what = f"peak memory / checkpoint of {bytes_ / 1e9:.2f} GB, {name}, {seconds:.0f} s"
        rows.append(row(what, peak / bytes_, at_most=limit))
    shutil.rmtree(folder)
    return rows
