"""llama.cpp, built of the pack's source for this machine's GPU; what an interrupted build left is used again."""

import os
import shutil
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.gpu.items import Work
from tests.gpu.layout import CUDA, LLAMA_CPP, TOOLCHAIN

NICENESS = 10
"""The processes that feed the GPU meanwhile come first."""


def build(work: Work) -> None:
    """Build into a folder that running.environment names to later items."""
    from pipeline.toolchains import llama_cpp
    from pipeline.toolchains.llama_cpp import compiler

    os.nice(NICENESS)
    # Two kernels are enough for any processor here, and take a few minutes of a core less.
    os.environ.setdefault(compiler.KERNELS_WANTED, "haswell" if work.small else "haswell,cascadelake")
    folder = work.folder / TOOLCHAIN
    source, objects, partial, root = (folder / name for name in ("source", "objects", "partial", "root"))
    if not source.exists():
        unpacked = folder / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        with tarfile.open(work.pack / "1" / LLAMA_CPP) as tar:
            tar.extractall(unpacked, filter="data")
        unpacked.rename(source)
    if compiler.cuda_flags():
        _find_cublas(compiler.tools(patched=True)["nvcc"], work.folder / CUDA)
    shutil.rmtree(partial, ignore_errors=True)
    began = time.perf_counter()
    llama_cpp.assemble(source, objects, partial)
    seconds = time.perf_counter() - began
    shutil.rmtree(root, ignore_errors=True)
    partial.rename(root)
    flags = " ".join(compiler.cuda_flags()) or "without CUDA"
    work.add("llama.cpp built", seconds, "s", note=f"{os.cpu_count()} logical cores, {flags}")
    if compiler.cuda_flags() and not (root / "bin/libggml-cuda.so").exists():
        raise SystemExit("llama.cpp was built with CUDA's flags, and no libggml-cuda.so came of it")


def _find_cublas(nvcc: Path, into: Path) -> None:
    """Let compilers find cuBLAS: the toolkit's, or that of torch's packages where the toolkit was installed without."""
    toolkit = nvcc.resolve().parent.parent
    if any(next(toolkit.glob(f"{place}cublas_v2.h"), None) for place in ("include/", "targets/*/include/")):
        return
    import torch

    packages = Path(torch.__file__).parents[1] / "nvidia"
    link_cublas(packages.glob("*/include/cublas*.h"), packages.glob("*/lib/libcublas*.so.*"), into)
    for variables, name in (
        (("CPATH",), "include"),
        (("LIBRARY_PATH", "CMAKE_LIBRARY_PATH", "LD_LIBRARY_PATH"), "lib"),
    ):
        for variable in variables:
            os.environ[variable] = os.pathsep.join(filter(None, (str(into / name), os.environ.get(variable))))


def link_cublas(headers: Iterable[Path], libraries: Iterable[Path], into: Path) -> None:
    """Lay headers and libraries out as a toolkit has them: packages hold no names without a version to link with."""
    shutil.rmtree(into, ignore_errors=True)
    for name, paths in (("include", headers), ("lib", libraries)):
        (into / name).mkdir(parents=True)
        for path in paths:
            (into / name / path.name).symlink_to(path)
            plain = into / name / f"{path.name.partition('.so.')[0]}.so"
            if name == "lib" and not plain.exists():
                plain.symlink_to(path)
