"""The demo from scratch against the same work by hand; an unchanged run; --help."""

import os
from pathlib import Path

from pipeline.toolchains import llama_cpp
from tests.bench.workspace import PYTHON, ROOT, Row, row, run, seconds, workspace

MOST, MOST_UNCHANGED_SECONDS, MOST_HELP_SECONDS = 1.25, 3.0, 1.0


def flow(scratch: Path) -> list[Row]:
    """Time the demo from scratch up to quality against the same steps by hand."""
    clone = workspace(scratch / "demo")
    environment = {**os.environ, "PATH": f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}"}

    def repro(*stages: str) -> None:
        run(["dvc", "repro", *stages], cwd=clone, env=environment)

    ours = seconds(lambda: repro("quality"))
    hand = _by_hand(scratch / "hand", clone)
    whole = ours + seconds(repro)
    unchanged = seconds(repro)
    helps = min(seconds(lambda: run([PYTHON, "-m", "pipeline", "--help"], cwd=ROOT)) for _ in range(3))
    return [
        row("dvc repro up to quality / by hand", ours / hand, at_most=MOST, prefix=f"{ours:.0f} s / {hand:.0f} s = "),
        ("dvc repro, latency and selection included", f"{whole:.0f} s", "", ""),
        row("unchanged dvc repro, seconds", unchanged, at_most=MOST_UNCHANGED_SECONDS),
        row("python -m pipeline --help, seconds", helps, at_most=MOST_HELP_SECONDS),
    ]


def _by_hand(work: Path, clone: Path) -> float:
    """Run every step and return the seconds they took together."""
    work.mkdir()
    llama, source = llama_cpp.find(), clone / "models/demo"
    calibration, evaluation = (clone / f"corpus/{name}.npz" for name in ("calibration", "evaluation"))
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
    return sum(seconds(lambda command=command: run(command, work, environment)) for command in steps)  # type: ignore[misc]


def _write_text(source: Path, windows: Path, out: Path) -> None:
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    out.write_text("\n".join(tokenizer.decode(row, skip_special_tokens=True) for row in np.load(windows)["ids"]))
