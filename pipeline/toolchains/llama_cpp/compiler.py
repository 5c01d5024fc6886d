"""Compiling llama.cpp: one build for every processor of an architecture, in which kernels are chosen at run time."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline import machine, processes
from pipeline.errors import ParamsError, RequirementError
from pipeline.progress import LOG_INTERVAL_SECONDS

FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",  # libraries are found beside the programs, wherever the folder goes
    "-DGGML_NATIVE=OFF",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU_ALL_VARIANTS=ON",  # of which patches/cpu-variants.patch builds GGML_CPU_VARIANTS
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # would be fetched from the network
)
PROGRAMS = ("llama-quantize", "llama-imatrix", "llama-server", "llama-perplexity")
"""The last is what tests and benchmarks hold the scorer against."""

KERNELS = {
    "x86_64": ("sse42", "haswell", "alderlake", "cascadelake"),
    "aarch64": ("armv8.0_1", "armv8.2_2", "armv8.6_1", "armv8.6_2"),
}
"""Which of ggml's kernels are built, each a minute of one core. Processors that others are named after take the best of
these that they can run, and lose nothing but speed:

- Without SSE 4.2, x64: Python's packages do not run there either.
- With AVX alone, sandybridge and two more: they take sse42's.
- AVX-512 without VNNI, skylakex and cannonlake: haswell's. VNNI is what quantized types gain by; alderlake has it in
  AVX2, cascadelake in AVX-512.
- VBMI, icelake: ggml's sources never use it. BF16, cooperlake and zen4: weights in bfloat16 alone would gain.
- AMX, sapphirerapids: GCC names 8 of the 64 bytes that `ldtilecfg` reads as its input, the optimizer drops the stores
  of the others, and every quantized type ends in SIGSEGV or SIGILL (https://github.com/ggml-org/llama.cpp/issues/20824,
  https://github.com/ggml-org/llama.cpp/pull/26954). These kernels may come in when the pinned source has a correction,
  and it was measured on such a processor; until then that takes cascadelake's.
- On arm64, SME, armv9.2: GCC 12 cannot compile it. Other steps lie close to their neighbours."""
KERNELS_WANTED = "ASSAY_LLAMA_CPP_KERNELS"
"""Environment variable that names the kernels to build instead, joined by commas."""

CUDA_FLAGS = (
    "-DGGML_CUDA=ON",
    "-DGGML_CUDA_NCCL=OFF",  # would be taken where it happens to be installed, and only helps several GPUs
)
CUDA = Path("/usr/local/cuda/bin")
"""Where NVIDIA's packages put nvcc, without putting it on PATH."""
CUDA_OFF = "ASSAY_LLAMA_CPP_DEVICE"
"""Environment variable that says `cpu` where there are GPUs, and llama.cpp is to be built without them."""


def flags() -> tuple[str, ...]:
    """Return what cmake is told, but for paths."""
    wanted = kernels()
    return (*FLAGS, *([f"-DGGML_CPU_VARIANTS={';'.join(wanted)}"] if wanted else []), *cuda_flags())


def kernels() -> tuple[str, ...]:
    """Name the kernels to build; none are all of ggml's, on an architecture that is not listed."""
    architecture = platform.machine()
    known = KERNELS.get(architecture, ())
    if (told := os.environ.get(KERNELS_WANTED)) is None:
        return known
    wanted = tuple(name.strip() for name in told.split(",") if name.strip())
    if not wanted or (known and not set(wanted) <= set(known)):
        raise ParamsError(f"{KERNELS_WANTED}={told}: expected some of {','.join(known)}, which {architecture} has")
    return wanted


def cuda_flags() -> tuple[str, ...]:
    """Return what the build needs for the GPUs that are installed, and nothing where there are none or none wanted."""
    wanted = machine.driver() is not None and os.environ.get(CUDA_OFF) != "cpu"
    capabilities = {gpu.compute_capability.replace(".", "") for gpu in machine.installed()} if wanted else set()
    if not capabilities:
        return ()
    return (*CUDA_FLAGS, f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(f'{one}-real' for one in sorted(capabilities))}")


def version(name: str, line: int = 0) -> str:
    """Name a compiler by a line of its version, or "none": a machine without one simply has no toolchain to find."""
    compiler = _located(name)
    if compiler is None:
        return "none"
    return processes.run([compiler, "--version"], what=f"{name} --version").splitlines()[line]


def tools(*, patched: bool = False) -> dict[str, Path]:
    """Find what compiles. RequirementError names the first that is missing, and how to get it.

    Sources that are patched already do not need git.
    """
    names = ["cmake", "c++", "ninja", *([] if patched else ["git"]), *(["nvcc"] if cuda_flags() else [])]
    return {name: _tool(name) for name in names}


def _tool(name: str) -> Path:
    """Find a build tool; ninja is a Python package of ours, the others are the system's."""
    remedies = {
        "cmake": "run `apt-get install cmake`",
        "c++": "run `apt-get install g++`",
        "git": "run `apt-get install git`",
        "ninja": f"run `{sys.executable} -m pip install ninja`",
        "nvcc": "install NVIDIA's CUDA toolkit, one that the driver supports, or have llama.cpp built without the GPU: "
        f"`export {CUDA_OFF}=cpu`",
    }
    found = _located(name)
    if found is None:
        raise RequirementError(f"{name} is needed to build llama.cpp and is not installed; {remedies[name]}")
    return found


def _located(name: str) -> Path | None:
    beside = Path(sys.executable).parent / name
    if name == "ninja" and beside.exists():
        return beside
    if name == "c++":  # as cmake chooses it
        name = (os.environ.get("CXX") or name).split()[0]
    found = shutil.which(name) or (name == "nvcc" and shutil.which(name, path=str(CUDA)))
    return Path(found) if found else None


def compile_(source: Path, objects: Path, tools: Mapping[str, Path]) -> None:
    """Compile the programs and their libraries into `objects`/bin. BuildError has the last lines of what failed."""
    env = dict(os.environ)
    if "nvcc" in tools:  # cmake finds the rest of the toolkit beside the one on PATH
        env["PATH"] = os.pathsep.join([str(tools["nvcc"].parent), env["PATH"]])
    configure = [str(tools["cmake"]), "-S", str(source), "-B", str(objects), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}", *flags()]
    # No binary names the folder that it happened to be built in.
    configure += [f"-DCMAKE_{language}_FLAGS=-ffile-prefix-map={source.parent}=." for language in ("C", "CXX")]
    processes.run(configure, what="cmake for llama.cpp", env=env)
    _ninja([str(tools["ninja"]), "-C", str(objects), *PROGRAMS], env)


def _ninja(command: list[str], env: dict[str, str]) -> None:
    """Run ninja behind a progress bar: it numbers its steps [n/m] when its output is no terminal."""
    interval = 0.2 if sys.stderr.isatty() else LOG_INTERVAL_SECONDS
    tail: deque[str] = deque(maxlen=40)
    env = {**env, "NINJA_STATUS": "[%f/%t] "}
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (
        subprocess.Popen(command, env=env, text=True, errors="replace", **streams) as process,
        tqdm(desc="building llama.cpp", mininterval=interval, dynamic_ncols=True, leave=False) as bar,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                tail.append(line.rstrip())
                if step := re.match(r"\[(\d+)/(\d+)\]", line):
                    bar.total = int(step[2])
                    bar.update(int(step[1]) - bar.n)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise processes.failure("compiling llama.cpp", process.returncode, tail)
