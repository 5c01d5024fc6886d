"""What `assay plan` foretells of a checkpoint of a billion random parameters, against what comes of it."""

import json
import os
from pathlib import Path

import yaml

from tests.bench.workspace import PYTHON, Row, random_checkpoint, row, run, workspace

ARTIFACTS = ("gguf-f16", "gguf-q4_k_m", "onnx-int8", "onnx-int4", "gptq-int4")
"""AWQ's search takes hours on few cores; its artifacts are served by the same engine as GPTQ's."""

MOST_BYTES, MOST_SERVING = 0.03, 0.15
"""Largest error, as a share of what was measured."""


def sizing(scratch: Path) -> list[Row]:
    """Build and serve artifacts of 1.06 billion parameters; the error of their predicted size and memory.

    About an hour on 2 cores, most of it GPTQ. Build memory has no limit: the estimate is of a build that finds nothing
    of a sibling's in the cache.
    """
    clone = workspace(scratch / "clone", ARTIFACTS)
    shape = {"hidden": 2048, "inner": 5632, "layers": 22, "heads": 32}
    random_checkpoint(clone / "models/demo", clone / "models/random", **shape)
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["checkpoint"]["source"] = "models/random"
    for split in ("calibration", "evaluation"):
        params["corpus"][split]["windows"] = 8
    (clone / "params.yaml").write_text(yaml.safe_dump(params))
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    for stage in ("inputs", "checkpoint", "corpus"):
        run([PYTHON, "-m", "pipeline", stage], clone, environment)
    rows: list[Row] = []
    for name in ARTIFACTS:
        for stage in ("artifact", "latency"):
            run([PYTHON, "-m", "pipeline", stage, name], clone, environment)
        rows += _rows(clone, name)
    return rows


def _rows(clone: Path, name: str) -> list[Row]:
    build = json.loads((clone / f"measurements/build/{name}.json").read_text())
    bytes_ = json.loads((clone / f"artifacts/{name}/assay.json").read_text())["bytes"]
    served = json.loads((clone / f"measurements/latency/{name}.json").read_text())["served"]["peak_rss_bytes"]
    foretold = build["predicted"]
    return [
        _row(f"{name}: size, MB, predicted and measured, error", foretold["bytes"], bytes_, MOST_BYTES),
        _row(f"{name}: serving memory, MB", foretold["serving_bytes"], served, MOST_SERVING),
        _row(f"{name}: build memory, MB", foretold["build_bytes"], build["peak_rss_bytes"], None),
    ]


def _row(what: str, foretold: int, measured: int, most: float | None) -> Row:
    prefix = f"{foretold / 1e6:,.0f} / {measured / 1e6:,.0f}: "
    return row(what, abs(foretold / measured - 1), at_most=most, prefix=prefix)
