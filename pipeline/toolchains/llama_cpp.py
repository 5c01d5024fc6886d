"""llama.cpp, built once from a pinned source.

It comes out of the llama-cpp-python source distribution, which holds the whole tree: converter, quantizer, server and
bindings of one release, so they always agree on the file format. The folder's name is the digest of everything that
shapes the binaries. It is filled under another name and renamed when complete: an interrupted build, or one that ran
out of disk, is never taken for a finished one.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from tqdm import tqdm

from pipeline import digests, machine, processes
from pipeline.compute import Compute
from pipeline.errors import BuildError, RequirementError
from pipeline.progress import LOG_INTERVAL_SECONDS
from pipeline.toolchains import store

PIN = Path(__file__).parents[1] / "backends" / "gguf" / "llama_cpp.txt"

FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",  # libraries are found beside the programs, wherever the folder goes
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # would be fetched from the network
)
CUDA_FLAGS = (
    "-DGGML_CUDA=ON",
    "-DGGML_CUDA_NCCL=OFF",  # would be taken where it happens to be installed, and only helps several GPUs
)
CUDA = Path("/usr/local/cuda/bin")
"""Where NVIDIA's packages put nvcc, without putting it on PATH."""
CUDA_OFF = "ASSAY_LLAMA_CPP_DEVICE"
"""Environment variable that says `cpu` where there are GPUs, and llama.cpp is to be built without them."""
TOOLS = ("llama-quantize", "llama-imatrix", "llama-perplexity", "llama-bench", "llama-server")
KEPT = ("convert_hf_to_gguf.py", "conversion", "gguf-py", "models", "LICENSE")
"""What is kept of the source tree: the converter, the package it imports, real vocabularies for tests."""
FREE_BYTES = 2 * 2**30
"""Room that a build needs: 0.3 GB of unpacked sources and 1 GB of objects, with a margin. As much again for CUDA."""
LAYOUT = 1
"""Raise when what a toolchain folder holds changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One line of a pip requirement file: the exact source, and the digest that proves it."""

    project: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCpp:
    """A finished llama.cpp toolchain."""

    root: Path
    version: str
    """Of llama-cpp-python, which names the llama.cpp revision."""

    @property
    def bin(self) -> Path:
        """Programs, and the shared libraries beside them."""
        return self.root / "bin"

    @property
    def converter(self) -> Path:
        """The script that turns a Hugging Face folder into a GGUF file."""
        return self.root / "convert_hf_to_gguf.py"

    @property
    def vocabularies(self) -> Path:
        """A folder of `ggml-vocab-*.gguf`: whole tokenizers of well-known families."""
        return self.root / "models"

    def tool(self, name: str) -> Path:
        """Return the path of one program, such as llama-quantize."""
        return self.bin / name

    def gpu_layers(self, compute: Compute) -> Literal["all", "0"]:
        """Say what -ngl takes: how many layers go to GPUs; none of them where it was built without CUDA."""
        return "all" if compute.device == "cuda" and (self.bin / "libggml-cuda.so").exists() else "0"


def find() -> LlamaCpp:
    """Find the built toolchain. Raises RequirementError when it has not been built.

    ASSAY_LLAMA_CPP names the root of one that was built elsewhere from the same source, as in a serving image: its
    programs and libraries are taken as they are.
    """
    pin = read_pin(PIN)
    if (prebuilt := os.environ.get("ASSAY_LLAMA_CPP")) is not None:
        given = LlamaCpp(root=Path(prebuilt), version=pin.version)
        if not (given.bin / "libllama.so").exists():
            raise RequirementError(f"ASSAY_LLAMA_CPP: {prebuilt} holds no bin/libllama.so")
        return given
    found = LlamaCpp(root=store.root() / f"llama.cpp-{_key(pin)}", version=pin.version)
    if not _complete(found):
        raise RequirementError(f"llama.cpp {pin.version} is not built for this machine; run `make setup`")
    return found


def build() -> LlamaCpp:
    """Build the toolchain, or return the one that is there: about 5 minutes on 2 cores, 77 MB of download.

    With CUDA, which is taken in where there is a GPU, it takes several times as long. A second process waits for the
    first. Raises RequirementError for a missing compiler or cmake, BuildError when the download or the compilation
    fails, StorageError when the disk is full.
    """
    pin = read_pin(PIN)
    folder = store.root()
    built = LlamaCpp(root=folder / f"llama.cpp-{_key(pin)}", version=pin.version)
    if _complete(built):
        return built
    names = ("cmake", "c++", "ninja", "nvcc") if _cuda_flags() else ("cmake", "c++", "ninja")
    tools = {name: _tool(name) for name in names}
    with store.locked("llama.cpp", _room(tools)):
        if not _complete(built):
            _build(pin, built, tools)
    return built


def install_bindings(toolchain: LlamaCpp) -> None:
    """Install the Python bindings of this toolchain into the running environment, unless they are there.

    The wheel was made with the toolchain and holds no compiled code, so this needs neither network nor compiler.
    """
    project = read_pin(PIN).project
    try:
        if importlib.metadata.version(project) == toolchain.version:
            return
    except importlib.metadata.PackageNotFoundError:
        pass
    (wheel,) = (toolchain.root / "wheels").glob("*.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    processes.run([*command, str(wheel)], what=f"pip install {wheel.name}")


def bindings() -> Any:
    """Import the llama.cpp bindings on this toolchain's libraries, whatever libraries came with the package."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(find().bin)
    try:
        import llama_cpp as module
    except ImportError as error:
        raise RequirementError(f"the llama.cpp bindings cannot be imported ({error}); run `make setup`") from error
    return module


def fetch_source(to: Path) -> None:
    """Put the pinned source distribution at a path, its digest checked."""
    with TemporaryDirectory(dir=to.parent) as scratch:
        _download(read_pin(PIN), Path(scratch)).replace(to)


def read_pin(path: Path) -> Pin:
    """Read the one requirement of a pin file."""
    pattern = r"^([A-Za-z0-9._-]+)==([^\s]+) +--hash=sha256:([0-9a-f]{64})$"
    found = re.findall(pattern, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if len(found) != 1:
        raise RequirementError(f"{path}: expected one line like `name==1.2 --hash=sha256:<64 hex digits>`")
    project, version, sha256 = found[0]
    return Pin(project=project, version=version, sha256=sha256)


def _key(pin: Pin) -> str:
    """Digest of what shapes the binaries: with GGML_NATIVE the compiler uses whatever this very CPU offers."""
    cuda = _cuda_flags()
    parts = [
        pin.project,
        pin.version,
        pin.sha256,
        LAYOUT,
        list(FLAGS),
        platform.machine(),
        _compiler("c++", line=0),
        _cpu_features(),
        *([list(cuda), _compiler("nvcc", line=-1)] if cuda else []),
    ]
    return digests.of_value(parts)[:16]


def _cuda_flags() -> tuple[str, ...]:
    """Return what the build needs for the GPUs that are installed, and nothing where there are none or none wanted."""
    wanted = machine.driver() is not None and os.environ.get(CUDA_OFF) != "cpu"
    capabilities = {gpu.compute_capability.replace(".", "") for gpu in machine.installed()} if wanted else set()
    if not capabilities:
        return ()
    return (*CUDA_FLAGS, f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(f'{one}-real' for one in sorted(capabilities))}")


def _compiler(name: str, line: int) -> str:
    """Name a compiler by a line of its version, or "none": a machine without one simply has no toolchain to find."""
    compiler = _located(name)
    if compiler is None:
        return "none"
    return processes.run([compiler, "--version"], what=f"{name} --version").splitlines()[line]


def _cpu_features() -> list[str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return sorted(set(features.partition(":")[2].split()))


def _complete(toolchain: LlamaCpp) -> bool:
    needed = [toolchain.converter, toolchain.bin / "libllama.so", *(toolchain.tool(name) for name in TOOLS)]
    return all(path.exists() for path in needed)


def _tool(name: str) -> Path:
    """Find a build tool; ninja is a Python package of ours, the others are the system's."""
    remedies = {
        "cmake": "run `apt-get install cmake`",
        "c++": "run `apt-get install g++`",
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
    found = shutil.which(name) or (name == "nvcc" and shutil.which(name, path=str(CUDA)))
    return Path(found) if found else None


def _room(tools: Mapping[str, Path]) -> int:
    return FREE_BYTES * (2 if "nvcc" in tools else 1)


def _build(pin: Pin, built: LlamaCpp, tools: dict[str, Path]) -> None:
    """Fill `built.root`, at once or not at all; the caller holds the lock, so every partial folder is stale."""
    folder = built.root.parent
    for stale in folder.glob("llama.cpp-*.partial"):
        shutil.rmtree(stale)
    store.check_free("llama.cpp", _room(tools))
    partial = folder / f"{built.root.name}.partial"
    try:
        partial.mkdir()
        archive = _download(pin, partial)
        source = _unpack(archive, partial / "source")
        _wheel(archive, partial / "finished" / "wheels")  # first, because it may need the network
        _compile(source / "vendor" / "llama.cpp", partial / "objects", tools)
        _collect(source / "vendor" / "llama.cpp", partial / "objects", partial / "finished")
        shutil.rmtree(built.root, ignore_errors=True)
        (partial / "finished").rename(built.root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(pin: Pin, partial: Path) -> Path:
    """Fetch the source distribution through pip, and check its digest once more ourselves before it is unpacked."""
    tqdm.write(f"downloading {pin.project} {pin.version}", file=sys.stderr)
    into = partial / "download"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", pin.project]
    command += ["--require-hashes", "-r", str(PIN), "-d", str(into)]
    processes.run(command, what=f"download of {pin.project} {pin.version}")
    found = list(into.glob("*.tar.gz"))
    if len(found) != 1:
        raise BuildError(f"download of {pin.project} {pin.version}: expected one .tar.gz, found {len(found)}")
    sha256 = digests.of_file(found[0])
    if sha256 != pin.sha256:
        raise BuildError(f"{found[0].name}: sha256 is {sha256}, {PIN.name} asks for {pin.sha256}; not used")
    return found[0]


def _unpack(archive: Path, into: Path) -> Path:
    into.mkdir()
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):  # Debian 12's Python is older than it; the digest vouches for the content
            tar.extractall(into, filter="data")
        else:
            tar.extractall(into)
    (source,) = into.iterdir()
    return source


def _compile(source: Path, objects: Path, tools: dict[str, Path]) -> None:
    # A repository around the cache folder is not llama.cpp's: its commit has no place in the version string.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(objects.parent)}
    if "nvcc" in tools:  # cmake finds the rest of the toolkit beside the one on PATH
        env["PATH"] = os.pathsep.join([str(tools["nvcc"].parent), env["PATH"]])
    configure = [str(tools["cmake"]), "-S", str(source), "-B", str(objects), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}", *FLAGS, *_cuda_flags()]
    processes.run(configure, what="cmake for llama.cpp", env=env)
    _ninja([str(tools["ninja"]), "-C", str(objects), *TOOLS], env)


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
        lines = "\n".join(f"  {line}" for line in tail)
        raise BuildError(f"compiling llama.cpp exited with {process.returncode}; its last lines:\n{lines}")


def _wheel(archive: Path, into: Path) -> None:
    """Make the bindings' wheel without their own copy of the libraries: they load the toolchain's."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(into), str(archive)]
    processes.run(
        command, what="wheel of the llama.cpp bindings", env={**os.environ, "CMAKE_ARGS": "-DLLAMA_BUILD=OFF"}
    )


def _collect(source: Path, objects: Path, into: Path) -> None:
    into.mkdir(exist_ok=True)
    shutil.copytree(objects / "bin", into / "bin", symlinks=True)
    for name in KEPT:
        path = source / name
        if path.is_dir():
            shutil.copytree(path, into / name, ignore=shutil.ignore_patterns("tests", "examples", "*.inp", "*.out"))
        else:
            shutil.copy2(path, into / name)
