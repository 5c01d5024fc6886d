"""The engine's image: base, runtime and packages. Built once for given inputs, and then taken from the cache."""

import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import digests, oci, processes
from pipeline.engines import ENGINES
from pipeline.images import cache, manifest, wheels
from pipeline.images.assemble import PACKAGES
from pipeline.images.bases import Base, Bases
from pipeline.images.builders import Builder
from pipeline.images.manifest import ROOT
from pipeline.records import FILE, Engine, EngineName
from pipeline.toolchains import llama_cpp

LAYOUT = 1
"""Raise when the same files are built into another image."""

NOT_SERVED = re.compile(r"libggml-cuda|libllama-(quantize|imatrix|perplexity)")
"""Libraries that an image has no use for; it serves on CPUs."""


def build(name: EngineName, builder: Builder, bases: Bases) -> Path:
    """Return a folder with `layout/` and the record; built now if nothing like it was built before.

    Raises RequirementError when a base cannot be pulled, BuildError when a build fails.
    """
    inputs = _inputs(name, bases)

    def fill(folder: Path) -> None:
        with TemporaryDirectory(dir=folder) as scratch:
            target = Path(scratch) / "context"
            context(name, target, bases.runtime.python)
            builder.build(target, bases, Path(scratch) / "built")
            layout = _tidied(oci.Layout.open(Path(scratch) / "built"), folder / "layout", bases.runtime)
        Engine(
            name=name,
            digest=layout.image.digest,
            base=bases.runtime.name,
            base_digest=bases.runtime.digest,
            python=bases.runtime.python,
            packages=wheels.installed(name, bases.runtime.python),
            builder=f"{builder.name} {builder.version}",
            inputs=inputs,
            bytes=sum(layer.size for layer in layout.layers),
        ).save(folder / FILE)

    return cache.folder(f"engine-{name}-{digests.of_value([LAYOUT, builder.name, inputs])[:16]}", fill)


def _inputs(name: EngineName, bases: Bases) -> dict[str, str]:
    """Name everything that shapes the image, with its digest."""
    found = {"base": bases.runtime.digest, "build": bases.build.digest}
    for file in sorted(manifest.parts(name).iterdir()):
        if file.is_file():
            found[file.name] = f"sha256:{digests.of_file(file)}"
    if ENGINES[name].toolchain:
        found["source"] = f"sha256:{llama_cpp.pin().sha256}"
        found["toolchain"] = f"sha256:{llama_cpp.key()}"
    return found


def context(name: EngineName, into: Path, python: str) -> None:
    """Gather what the Containerfile copies: nothing is downloaded while it is built."""
    folder = manifest.parts(name)
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("__pycache__"))
    (into / "wheelhouse").mkdir()
    for requirements in wheels.files(folder):
        for wheel in wheels.wheelhouse(requirements, python).iterdir():
            shutil.copy2(wheel, into / "wheelhouse" / wheel.name)
    if ENGINES[name].toolchain:
        _llama_cpp(into)


def _llama_cpp(into: Path) -> None:
    """Add what serves of the machine's llama.cpp, its bindings, and the code of the self-test."""
    toolchain = llama_cpp.find()
    programs, libraries = into / "llama.cpp" / "bin", toolchain.bin.glob("*.so*")
    programs.mkdir(parents=True)
    for path in [toolchain.tool("llama-server"), *(one for one in libraries if not NOT_SERVED.match(one.name))]:
        shutil.copy2(path, programs, follow_symlinks=False)
    files = [path for path in programs.iterdir() if not path.is_symlink()]
    processes.run(["strip", "--strip-unneeded", *files], what="strip of llama.cpp")
    openmp = processes.run(["c++", "-print-file-name=libgomp.so.1"], what="search for OpenMP's library").strip()
    shutil.copy2(Path(openmp).resolve(), programs / "libgomp.so.1")
    shutil.copy2(toolchain.root / "LICENSE", into / "llama.cpp")
    with zipfile.ZipFile(toolchain.wheel) as wheel:
        wheel.extractall(into / "bindings")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, into / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))


def _tidied(built: oci.Layout, into: Path, base: Base) -> oci.Layout:
    """Copy an image, and of its configuration what means something: builders add dates and their own names."""
    layout = oci.Layout.create(into)
    for layer in built.layers:
        layout.take(built, layer)
    config: Mapping[str, object] = {
        **oci.platform(built.config),
        "config": {"Env": built.config["config"].get("Env", [])},
        "rootfs": built.config["rootfs"],
        "history": [{"created_by": f"{base.name} and an engine of Assay"} for _ in built.layers],
    }
    plain = [oci.Descriptor(media_type=one.media_type, digest=one.digest, size=one.size) for one in built.layers]
    layout.finish(config, plain, oci.base_annotations(base.name, base.digest))
    return layout
