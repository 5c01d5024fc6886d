"""llama.cpp, built once from a pinned source, for the machine and for the images of its artifacts.

It comes out of the llama-cpp-python source distribution, which holds the whole tree: converter, quantizer, server and
bindings of one release, so they always agree on the file format. The folder's name is the digest of everything that
shapes the binaries. It is filled under another name and renamed when complete, and when its kernels have computed what
they should: an interrupted build, or one that ran out of disk, is never taken for a finished one.
"""

import ctypes
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import digests, interpreter, processes
from pipeline.compute import Compute
from pipeline.errors import RequirementError
from pipeline.toolchains import store
from pipeline.toolchains.llama_cpp import compiler, source
from pipeline.toolchains.llama_cpp.source import Pin

KEPT = ("convert_hf_to_gguf.py", "conversion", "gguf-py", "models", "LICENSE")
"""What is kept of the source tree: the converter, the package it imports, real vocabularies for tests."""
FREE_BYTES = 2 * 2**30
"""Room that a build needs: 0.3 GB of unpacked sources and 1 GB of objects, with a margin. As much again for CUDA."""
LAYOUT = 2
"""Raise when what a toolchain folder holds changes."""
TESTED = "tested"
"""Folder in a toolchain: a file for each processor on which the self-test passed."""

_kept: list[object] = []
"""C callbacks that the library still points to."""


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

    @property
    def wheel(self) -> Path:
        """The bindings, which hold no compiled code."""
        (wheel,) = (self.root / "wheels").glob("*.whl")
        return wheel

    def tool(self, name: str) -> Path:
        """Return the path of one program, such as llama-quantize."""
        return self.bin / name

    def gpu_layers(self, compute: Compute) -> Literal["all", "0"]:
        """Say what -ngl takes: how many layers go to GPUs; none of them where it was built without CUDA."""
        return "all" if compute.device == "cuda" and (self.bin / "libggml-cuda.so").exists() else "0"


def find() -> LlamaCpp:
    """Find the built toolchain. RequirementError when it has not been built, or not been tried on this processor.

    ASSAY_LLAMA_CPP names the root of one that was built elsewhere from the same source, as in a serving image: its
    programs and libraries are taken as they are.
    """
    if (prebuilt := os.environ.get("ASSAY_LLAMA_CPP")) is not None:
        given = LlamaCpp(root=Path(prebuilt), version=pin().version)
        if not (given.bin / "libllama.so").exists():
            raise RequirementError(f"ASSAY_LLAMA_CPP: {prebuilt} holds no bin/libllama.so")
        return given
    found = _expected()
    if not _complete(found):
        raise RequirementError(f"llama.cpp {found.version} is not built for this machine; run `{interpreter.setup()}`")
    if not _tested(found).exists():
        raise RequirementError(
            f"llama.cpp {found.version} was not yet tried on this processor; run `{interpreter.setup()}`"
        )
    return found


def build() -> LlamaCpp:
    """Build the toolchain, or return the one that is there: about 5 minutes on 2 cores, 77 MB of download.

    With CUDA, which is taken in where there is a GPU, it takes several times as long. A second process waits for the
    first. Raises RequirementError for a missing compiler or cmake, BuildError when the download, the compilation or
    the self-test fails, StorageError when the disk is full.
    """
    built = _expected()
    if _complete(built) and _tested(built).exists():
        return built
    with store.locked("llama.cpp", _room()):
        if not _complete(built):
            _build(built)
        elif not _tested(built).exists():
            _try(built, built)
    return built


def install_bindings(toolchain: LlamaCpp) -> None:
    """Install the Python bindings of this toolchain into the running environment, unless they are there.

    The wheel was made with the toolchain and holds no compiled code, so this needs neither network nor compiler.
    """
    try:
        if importlib.metadata.version(pin().project) == toolchain.version:
            return
    except importlib.metadata.PackageNotFoundError:
        pass
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    processes.run([*command, str(toolchain.wheel)], what=f"pip install {toolchain.wheel.name}")


def load(log: Callable[[int, bytes, object], None], *, kernels: str | None = None) -> Any:
    """Import the bindings on this toolchain's libraries, whatever came with the package, and load kernels; once.

    `log` gets every line of the library's log with its level. llama.cpp chooses the kernels for this processor, and
    takes GPUs where it was built for them, unless `kernels` names some, such as haswell.
    """
    folder = find().bin
    os.environ["LLAMA_CPP_LIB_PATH"] = str(folder)
    try:
        import llama_cpp as module
    except ImportError as error:
        told = f"the llama.cpp bindings cannot be imported ({error}); run `{interpreter.setup()}`"
        raise RequirementError(told) from error
    callback = module.llama_log_callback(log)
    _kept.append(callback)
    module.llama_log_set(callback, ctypes.c_void_p(0))
    ggml = ctypes.CDLL(str(folder / "libggml.so"))
    if kernels is None:
        ggml.ggml_backend_load_all_from_path(str(folder).encode())
    else:
        ggml.ggml_backend_load.restype = ctypes.c_void_p
        if not ggml.ggml_backend_load(str(folder / f"libggml-cpu-{kernels}.so").encode()):
            raise RequirementError(f"{folder}: has no kernels {kernels} that this processor can run")
    module.llama_backend_init()
    return module


def pin() -> Pin:
    """Name the source distribution."""
    return source.read_pin(source.PIN)


def key() -> str:
    """Digest of what shapes the binaries."""
    distribution, cuda = pin(), compiler.cuda_flags()
    parts = [
        distribution.project,
        distribution.version,
        distribution.sha256,
        source.patches(),
        LAYOUT,
        list(compiler.flags()),
        list(compiler.PROGRAMS),
        platform.machine(),
        compiler.version("c++"),
        *([compiler.version("nvcc", line=-1)] if cuda else []),
    ]
    return digests.of_value(parts)


def _expected() -> LlamaCpp:
    return LlamaCpp(root=store.root() / f"llama.cpp-{key()[:16]}", version=pin().version)


def _complete(toolchain: LlamaCpp) -> bool:
    needed = [toolchain.bin / "libllama.so", *(toolchain.tool(name) for name in compiler.PROGRAMS)]
    return all(path.exists() for path in [toolchain.converter, *needed])


def _tested(toolchain: LlamaCpp) -> Path:
    """Return the file that says that a toolchain works on this processor: its model, and what it can do."""
    told = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    parts = sorted({line for line in lines if line.startswith(told)})
    return toolchain.root / TESTED / digests.of_value(parts)[:16]


def _try(candidate: LlamaCpp, built: LlamaCpp) -> None:
    """Run the self-test on a toolchain's files, and note on which processor it passed."""
    from pipeline.toolchains.llama_cpp import selftest

    kernels = selftest.run(candidate.root, bindings=candidate.wheel)
    note = candidate.root / TESTED / _tested(built).name
    note.parent.mkdir(exist_ok=True)
    note.write_text(f"{selftest.processor()}: {', '.join(kernels)}\n", encoding="utf-8")


def _room() -> int:
    return FREE_BYTES * (2 if compiler.cuda_flags() else 1)


def _build(built: LlamaCpp) -> None:
    """Fill `built.root`, at once or not at all; the caller holds the lock, so every partial folder is stale."""
    compiler.tools()  # what is missing is told before anything is downloaded
    folder = built.root.parent
    for stale in folder.glob("llama.cpp-*.partial"):
        shutil.rmtree(stale)
    store.check_free("llama.cpp", _room())
    partial = folder / f"{built.root.name}.partial"
    try:
        partial.mkdir()
        archive = source.download(pin(), partial / "download")
        unpacked = source.unpack(archive, partial / "source")
        finished = LlamaCpp(root=partial / "finished", version=built.version)
        bindings_wheel(archive, finished.root / "wheels")  # first, because it may need the network
        assemble(unpacked, partial / "objects", finished.root)
        _try(finished, built)
        shutil.rmtree(built.root, ignore_errors=True)
        finished.root.rename(built.root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def bindings_wheel(archive: Path, into: Path) -> None:
    """Make the bindings' wheel without their own copy of the libraries: they load the toolchain's."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(into), str(archive)]
    processes.run(
        command, what="wheel of the llama.cpp bindings", env={**os.environ, "CMAKE_ARGS": "-DLLAMA_BUILD=OFF"}
    )


def assemble(unpacked: Path, objects: Path, into: Path) -> None:
    """Build a toolchain of an unpacked and patched source into a folder that ASSAY_LLAMA_CPP may name.

    What an interrupted build left in `objects` is used again. Raises RequirementError and BuildError as `build`.
    """
    compiler.compile_(unpacked, objects, compiler.tools(patched=True))
    into.mkdir(exist_ok=True)
    shutil.copytree(objects / "bin", into / "bin", symlinks=True)
    for name in KEPT:
        path = unpacked / name
        if path.is_dir():
            shutil.copytree(path, into / name, ignore=shutil.ignore_patterns("tests", "examples", "*.inp", "*.out"))
        else:
            shutil.copy2(path, into / name)


__all__ = [
    "LlamaCpp", "Pin", "assemble", "bindings_wheel", "build", "find", "install_bindings", "key", "load", "pin",
]  # fmt: skip
