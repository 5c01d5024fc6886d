"""The engine's image: base, runtime and packages. Built once for what it is made of, and found again."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import digests, oci
from pipeline.images import cache, wheels
from pipeline.images.bases import Base, Bases
from pipeline.images.builders import Builder
from pipeline.images.manifest import ROOT
from pipeline.records import FILE, Engine, EngineName
from pipeline.toolchains import llama_cpp

LAYOUT = 1
"""Raise when the same files are built into another image."""


def build(name: EngineName, builder: Builder, bases: Bases) -> Path:
    """Return a folder with `layout/` and the record; built now if nothing like it was built before.

    Raises RequirementError when a base cannot be pulled, BuildError when a build fails.
    """
    inputs = _inputs(name, bases)

    def fill(folder: Path) -> None:
        with TemporaryDirectory(dir=folder) as scratch:
            target = Path(scratch) / "context"
            context(name, target)
            builder.build(target, bases, Path(scratch) / "built")
            layout = _tidied(oci.Layout.open(Path(scratch) / "built"), folder / "layout", bases.runtime)
        Engine(
            name=name,
            digest=layout.image.digest,
            base=bases.runtime.name,
            base_digest=bases.runtime.digest,
            builder=f"{builder.name} {builder.version}",
            inputs=inputs,
            bytes=sum(layer.size for layer in layout.layers),
        ).save(folder / FILE)

    return cache.folder(f"engine-{name}-{digests.of_value([LAYOUT, builder.name, inputs])[:16]}", fill)


def _inputs(name: str, bases: Bases) -> dict[str, str]:
    """Name everything that shapes the image, with its digest."""
    found = {"base": bases.runtime.digest, "build": bases.build.digest}
    for file in sorted((ROOT / "containers" / name).iterdir()):
        if file.is_file():
            found[file.name] = f"sha256:{digests.of_file(file)}"
    if name == "llama_cpp":
        found["source"] = f"sha256:{llama_cpp.read_pin(llama_cpp.PIN).sha256}"
    return found


def context(name: str, into: Path) -> None:
    """Gather what the Containerfile copies: nothing is downloaded while it is built."""
    room = ROOT / "containers" / name
    shutil.copytree(room, into, ignore=shutil.ignore_patterns("__pycache__"))
    (into / "wheelhouse").mkdir()
    for requirements in wheels.files(room):
        for wheel in wheels.house(requirements).iterdir():
            shutil.copy2(wheel, into / "wheelhouse" / wheel.name)
    if name == "llama_cpp":
        llama_cpp.fetch_source(into / "source.tar.gz")


def _tidied(built: oci.Layout, into: Path, base: Base) -> oci.Layout:
    """Copy an image, and of its configuration what means something: builders add dates and their own names."""
    layout = oci.Layout.create(into)
    for layer in built.layers:
        layout.take(built, layer)
    config: Mapping[str, object] = {
        "architecture": built.config["architecture"],
        "os": built.config["os"],
        "config": {"Env": built.config["config"].get("Env", [])},
        "rootfs": built.config["rootfs"],
        "history": [{"created_by": f"{base.name} and an engine of Assay"} for _ in built.layers],
    }
    plain = [oci.Descriptor(media_type=one.media_type, digest=one.digest, size=one.size) for one in built.layers]
    layout.finish(config, plain, oci.base_annotations(base.name, base.digest))
    return layout
