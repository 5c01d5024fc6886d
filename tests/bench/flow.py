"""The demo against the same work by hand: from empty caches, from a made environment, and once more unchanged."""

import json
import os
import shutil
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.toolchains import llama_cpp
from tests.bench.workspace import PYTHON, ROOT, Row, row, run, seconds, workspace

MOST, MOST_UNCHANGED_SECONDS, MOST_HELP_SECONDS = 1.0, 2.0, 1.0
MOST_RANKING_MINUTES, MOST_IMAGE_MINUTES = 12.0, 18.0

BARE_TOOLS = ("gguf", "gptqmodel", "optimum", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "transformers")
"""What a person installs to do by hand what the demo does up to quality."""
PROGRAMS = ("llama-quantize", "llama-imatrix", "llama-perplexity")
"""What a person builds of llama.cpp for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What the steps by hand are done with."""

    python: str
    programs: Path
    converter: Path


def flow(scratch: Path) -> list[Row]:
    """Time the demo in this environment up to quality against the same steps by hand, then the rest, then nothing."""
    clone = workspace(scratch / "demo")
    ours = _repro(clone, "quality")
    llama = llama_cpp.find()
    tools = Tools(python=PYTHON, programs=llama.bin, converter=llama.converter)
    hand = _by_hand(scratch / "hand", clone, tools)
    whole = ours + _repro(clone)
    return [
        row("dvc repro up to quality / by hand", ours / hand, at_most=MOST, prefix=f"{ours:.0f} s / {hand:.0f} s = "),
        ("dvc repro, whole", f"{whole:.0f} s", "", ""),
        *_unchanged(clone),
    ]


def unchanged(scratch: Path) -> list[Row]:
    """Time an unchanged run alone, after a whole one that is not timed."""
    clone = workspace(scratch / "demo")
    _repro(clone)
    return _unchanged(clone)


def empty(scratch: Path) -> list[Row]:
    """Time a fresh clone with empty caches, to the ranking and to the verified image, and set-up and steps by hand.

    pip's cache is empty, too: what the figures say of its downloads is the nearness of the package index.
    """
    clone = workspace(scratch / "demo")
    caches = {"XDG_CACHE_HOME": str(scratch / "cache"), "PIP_CACHE_DIR": str(scratch / "cache/pip")}
    began = time.perf_counter()

    def so_far() -> float:
        return time.perf_counter() - began

    run([_base_python(), "bootstrap.py"], clone, {**os.environ, **caches})
    setup = so_far()
    _repro(clone, "quality", **caches)
    quality = so_far()
    _repro(clone, "selection", **caches)
    ranking = so_far()
    _repro(clone, **caches)
    image = so_far()
    start = time.perf_counter()
    tools = _tools_by_hand(scratch / "tools", clone)
    made = time.perf_counter() - start
    hand = made + _by_hand(scratch / "hand", clone, tools)
    words = f"{quality:.0f} s ({setup:.0f} s of set-up) / {hand:.0f} s ({made:.0f} s of set-up) = "
    verification = json.loads((clone / "verification.json").read_text())
    without = verification.get("unavailable")
    return [
        row("from empty caches up to quality / by hand", quality / hand, at_most=MOST, prefix=words),
        row("from empty caches to the ranking, minutes", ranking / 60, at_most=MOST_RANKING_MINUTES),
        ("to the verified image", f"none here: {without}", "", "")
        if without
        else row("from empty caches to the verified image, minutes", image / 60, at_most=MOST_IMAGE_MINUTES),
    ]


def _unchanged(clone: Path) -> list[Row]:
    nothing = min(_repro(clone) for _ in range(3))
    helps = min(seconds(lambda: run([PYTHON, "-m", "pipeline", "--help"], cwd=ROOT)) for _ in range(3))
    return [
        row("unchanged dvc repro, seconds", nothing, at_most=MOST_UNCHANGED_SECONDS),
        row("python -m pipeline --help, seconds", helps, at_most=MOST_HELP_SECONDS),
    ]


def _repro(clone: Path, *stages: str, **variables: str) -> float:
    """Run the flow, or a part of it, and return the seconds it took."""
    environment = _environment(clone, variables)
    dvc = shutil.which("dvc", path=environment["PATH"]) or "dvc"
    return seconds(lambda: run([dvc, "repro", *stages], clone, environment))


def _environment(clone: Path, variables: dict[str, str]) -> dict[str, str]:
    """Put the clone's own tools first on PATH where it has any, else those that run this."""
    own = clone / ".venv/bin"
    first = own if own.is_dir() else Path(PYTHON).parent
    return {**os.environ, "PATH": f"{first}{os.pathsep}{os.environ['PATH']}", **variables}


def _base_python() -> str:
    """Name the interpreter that this environment was made from, as a new user has it."""
    return str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}")


def _tools_by_hand(work: Path, clone: Path) -> Tools:
    """Install the bare tools and compile llama.cpp as its README says, from the source that the demo takes."""
    work.mkdir()
    run([_base_python(), "-m", "venv", work / "venv"], work)
    python = work / "venv/bin/python"
    pip: list[str | Path] = [python, "-m", "pip"]
    pinned: list[str | Path] = ["--no-cache-dir", "--constraint", clone / "constraints.txt"]
    run([*pip, "install", *pinned, *BARE_TOOLS], work)
    pin = llama_cpp.pin()
    source = [f"{pin.project}=={pin.version}", "--no-binary", ":all:", "--no-deps", "--no-build-isolation"]
    run([*pip, "download", "--no-cache-dir", *source, "--dest", work], work)
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    (tree,) = work.glob("*/vendor/llama.cpp")
    options = [f"-D{name}=OFF" for name in ("LLAMA_OPENSSL", "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI")]
    run(["cmake", "-S", tree, "-B", work / "build", "-DCMAKE_BUILD_TYPE=Release", *options], work)
    run(["cmake", "--build", work / "build", "-j", str(len(os.sched_getaffinity(0))), "--target", *PROGRAMS], work)
    return Tools(python=str(python), programs=work / "build/bin", converter=tree / "convert_hf_to_gguf.py")


def _by_hand(work: Path, clone: Path, tools: Tools) -> float:
    """Run every step and return the seconds they took together."""
    work.mkdir()
    source = clone / "models/demo"
    calibration, evaluation = (clone / f"corpus/{name}.npz" for name in ("calibration", "evaluation"))
    for windows in (calibration, evaluation):
        _write_text(source, windows, work / f"{windows.stem}.txt")
    threads = str(len(os.sched_getaffinity(0)))
    f16, imatrix = work / "F16.gguf", work / "imatrix.gguf"
    step: list[str | Path] = [tools.python, "-m", "tests.bench.by_hand"]
    steps: list[list[str | Path]] = [
        [*step, "score_transformers", "--source", source, "--windows", evaluation],
        [tools.python, tools.converter, source, "--outtype", "f16", "--outfile", f16],
        [
            tools.programs / "llama-imatrix",
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
        steps.append(
            [tools.programs / "llama-quantize", "--imatrix", imatrix, f16, work / f"{kind}.gguf", kind, threads]
        )
    for kind in types:
        text: list[str | Path] = ["-f", work / "evaluation.txt", "-c", "512", "-t", threads]
        steps.append([tools.programs / "llama-perplexity", "-m", work / f"{kind}.gguf", *text])
    for kind, bits in (("gptq", "8"), ("gptq", "4"), ("awq", "4")):
        out = work / f"{kind}-{bits}"
        chosen: list[str | Path] = ["--format", kind, "--bits", bits]
        steps.append([*step, "quantize", *chosen, "--source", source, "--windows", calibration, "--out", out])
        steps.append([*step, "score_gptqmodel", *chosen, "--source", out, "--windows", evaluation])
    for precision in ("fp32", "int8", "int4"):
        out = work / f"onnx-{precision}"
        builder: list[str | Path] = [
            tools.python,
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
