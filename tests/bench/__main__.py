"""`make bench`: what Assay costs over the bare tools, as ratios within one run. Never part of the tests.

python -m tests.bench              everything (about half an hour on 2 cores)
python -m tests.bench flow         the demo against the same work by hand; an unchanged run; --help
python -m tests.bench memory       peak memory of each conversion on a checkpoint of 0.6 GB of random weights
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from pipeline import toolchains

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
LIMITS = {"flow": 1.25, "unchanged seconds": 3.0, "help seconds": 1.0, "gguf memory": 1.3}


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks that were named, or all; return 1 when one is over its limit."""
    wanted = arguments or ["flow", "memory"]
    rows: list[tuple[str, str, str, str]] = []
    with tempfile.TemporaryDirectory(prefix="assay-bench-") as scratch:
        if "flow" in wanted:
            rows += flow(Path(scratch))
        if "memory" in wanted:
            rows += memory(Path(scratch))
    table = Table("what", "measured", "limit", "verdict", box=None)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
    return int(any(row[3] == "over" for row in rows))


def flow(scratch: Path) -> list[tuple[str, str, str, str]]:
    """Time the demo from scratch up to quality against the same steps by hand."""
    workspace = _workspace(scratch / "demo")
    environment = {**os.environ, "PATH": f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}"}

    def repro(*stages: str) -> None:
        _run(["dvc", "repro", *stages], cwd=workspace, env=environment)

    ours = _seconds(lambda: repro("quality"))
    hand = _by_hand(scratch / "hand", workspace)
    whole = ours + _seconds(repro)
    unchanged = _seconds(repro)
    helps = min(_seconds(lambda: _run([PYTHON, "-m", "pipeline", "--help"], cwd=ROOT)) for _ in range(3))
    return [
        _row("dvc repro up to quality / by hand", ours / hand, LIMITS["flow"], f"{ours:.0f} s / {hand:.0f} s = "),
        ("dvc repro, latency and selection included", f"{whole:.0f} s", "", ""),
        _row("unchanged dvc repro, seconds", unchanged, LIMITS["unchanged seconds"]),
        _row("python -m pipeline --help, seconds", helps, LIMITS["help seconds"]),
    ]


def memory(scratch: Path) -> list[tuple[str, str, str, str]]:
    """Build artifacts from random checkpoints; peak resident memory of the largest process over the weights' bytes.

    Every process also carries Python and its libraries, a quarter to three quarters of a gigabyte; the checkpoint for
    GGUF is large enough for that to fade. The other formats take theirs from a smaller one, for the time they take.
    """
    large, small = ("gguf-f16", "gguf-q4_k_m"), ("gptq-int4", "awq-int4", "onnx-int8", "onnx-int4")
    rows = _memory(scratch / "large", large, LIMITS["gguf memory"], hidden=2048, inner=5632, layers=28, heads=32)
    return rows + _memory(scratch / "small", small, None, hidden=1280, inner=3584, layers=16, heads=20)


def _memory(
    folder: Path, artifacts: Sequence[str], limit: float | None, **shape: int
) -> list[tuple[str, str, str, str]]:
    workspace = _workspace(folder, artifacts)
    checkpoint = workspace / "models/random"
    _random_checkpoint(workspace / "models/demo", checkpoint, **shape)
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["checkpoint"]["source"] = "models/random"
    for split in ("calibration", "evaluation"):
        params["corpus"][split]["windows"] = 8
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    bytes_ = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    environment = {**os.environ, "PYTHONPATH": str(workspace)}
    for stage in ("inputs", "checkpoint", "corpus"):
        _run([PYTHON, "-m", "pipeline", stage], cwd=workspace, env=environment)
    rows = []
    for name in artifacts:
        start = time.perf_counter()
        _run([PYTHON, "-m", "pipeline", "artifact", name], cwd=workspace, env=environment)
        seconds = time.perf_counter() - start
        peak = json.loads((workspace / f"measurements/build/{name}.json").read_text())["peak_rss_bytes"]
        what = f"peak memory / checkpoint of {bytes_ / 1e9:.2f} GB, {name}, {seconds:.0f} s"
        rows.append(_row(what, peak / bytes_, limit))
    shutil.rmtree(folder)
    return rows


def _by_hand(work: Path, workspace: Path) -> float:
    """Run every step and return the seconds they took together."""
    work.mkdir()
    llama, source = toolchains.llama_cpp(), workspace / "models/demo"
    calibration, evaluation = (workspace / f"corpus/{name}.npz" for name in ("calibration", "evaluation"))
    for windows in (calibration, evaluation):
        _write_text(source, windows, work / f"{windows.stem}.txt")
    threads = str(len(os.sched_getaffinity(0)))
    f16, imatrix = work / "F16.gguf", work / "imatrix.gguf"
    step: list[str | Path] = [PYTHON, "-m", "tests.bench.by_hand"]
    steps: list[list[str | Path]] = [
        [*step, "score_transformers", "--source", source, "--windows", evaluation],
        [PYTHON, llama.converter, source, "--outtype", "f16", "--outfile", f16],
        [
            llama.bin / "llama-imatrix",
            "-m",
            f16,
            "-f",
            work / "calibration.txt",
            "-c",
            "512",
            "-o",
            imatrix,
            "-t",
            threads,
        ],
    ]
    types = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
    for kind in types[1:]:
        steps.append([llama.bin / "llama-quantize", "--imatrix", imatrix, f16, work / f"{kind}.gguf", kind, threads])
    for kind in types:
        text: list[str | Path] = ["-f", work / "evaluation.txt", "-c", "512", "-t", threads]
        steps.append([llama.bin / "llama-perplexity", "-m", work / f"{kind}.gguf", *text])
    for kind, bits in (("gptq", "8"), ("gptq", "4"), ("awq", "4")):
        out = work / f"{kind}-{bits}"
        chosen: list[str | Path] = ["--format", kind, "--bits", bits]
        steps.append([*step, "quantize", *chosen, "--source", source, "--windows", calibration, "--out", out])
        steps.append([*step, "score_gptqmodel", *chosen, "--source", out, "--windows", evaluation])
    for precision in ("fp32", "int8", "int4"):
        out = work / f"onnx-{precision}"
        builder: list[str | Path] = [
            PYTHON,
            "-m",
            "onnxruntime_genai.models.builder",
            "-m",
            source,
            "-i",
            source,
            "-o",
            out,
        ]
        steps.append([*builder, "-p", precision, "-e", "cpu", "-c", work / "cache"])
        steps.append([*step, "score_genai", "--source", out, "--windows", evaluation])
    # In `work`, not here: GPTQModel leaves a folder `logs` wherever it runs.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return sum(_seconds(lambda command=command: _run(command, work, environment)) for command in steps)  # type: ignore[misc]


def _write_text(source: Path, windows: Path, out: Path) -> None:
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    out.write_text("\n".join(tokenizer.decode(row, skip_special_tokens=True) for row in np.load(windows)["ids"]))


def _random_checkpoint(tokenizer: Path, out: Path, *, hidden: int, inner: int, layers: int, heads: int) -> None:
    """Write random bfloat16 weights with the demo's tokenizer, in shapes that fit K-quants and groups of 128."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=json.loads((tokenizer / "config.json").read_text())["vocab_size"],
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(out, max_shard_size="1GB")
    for path in tokenizer.iterdir():
        if path.name.startswith(("tokenizer", "chat_template", "special")):
            shutil.copy(path, out)


def _workspace(folder: Path, artifacts: Sequence[str] | None = None) -> Path:
    """Make a repository of its own from this one's tracked files."""
    _run(["git", "clone", "-q", ROOT, folder], cwd=ROOT)
    if artifacts:
        params: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text())
        params["artifacts"] = {name: params["artifacts"][name] for name in artifacts}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


def _run(command: Sequence[str | Path], cwd: Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _row(what: str, measured: float, limit: float | None, prefix: str = "") -> tuple[str, str, str, str]:
    verdict = "" if limit is None else ("ok" if measured <= limit else "over")
    return what, f"{prefix}{measured:.2f}", "" if limit is None else f"{limit:g}", verdict


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
