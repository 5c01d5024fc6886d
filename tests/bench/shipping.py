"""What a release sends: the weights once, and after a change of code little but the code."""

import os
import shutil
from pathlib import Path
from random import Random

from pipeline import oci, paths
from pipeline.commands.release import release
from pipeline.images import assemble
from pipeline.records import Check, Verification
from tests.bench.workspace import ROOT, Row, row
from tests.support.shipping import docker_registry

ENGINE_BYTES, WEIGHTS_BYTES = 100 * 10**6, 150 * 10**6


def shipping(scratch: Path) -> list[Row]:
    """Release an image of 250 MB with this repository's code to a registry on loopback, change a line, do it again."""
    before = Path.cwd()
    os.chdir(scratch)  # stages and commands work on the folder that they are run in
    try:
        engine, weights, code = _engine(), Path("weights"), Path("code")
        weights.mkdir()
        (weights / "model.gguf").write_bytes(Random(1).randbytes(WEIGHTS_BYTES))
        for package in assemble.PACKAGES:
            shutil.copytree(ROOT / package, code / package)
        with docker_registry(scratch) as host:
            size = _image(engine, weights, code)
            release(f"{host}/bench/model", "1")
            again = release(f"{host}/bench/model", "1").bytes_sent
            with (code / "containers/gateway/app.py").open("a") as file:
                file.write("# changed\n")
            _image(engine, weights, code)
            changed = release(f"{host}/bench/model", "2").bytes_sent
    finally:
        os.chdir(before)
    what, prefix = (
        "release after a change of code, % of the image's bytes sent",
        f"{changed / 1e6:.2f} MB of {size / 1e6:.0f} = ",
    )
    return [
        row(what, 100 * changed / size, at_most=5, prefix=prefix),
        row("release again without a change, bytes of blobs sent", again, at_most=0),
    ]


def _engine() -> oci.Layout:
    """Write something of an engine's size."""
    layout = oci.Layout.create(Path("engine"))
    content = Random(0).randbytes(ENGINE_BYTES)
    layer = layout.add_layer([oci.Entry(path=assemble.CODE / "engine", content=content)])
    rootfs = {"type": "layers", "diff_ids": [layer.digest]}
    config = {"architecture": "amd64", "os": "linux", "config": {"Env": []}, "rootfs": rootfs, "history": []}
    layout.finish(config, [layer], {})
    return layout


def _image(engine: oci.Layout, weights: Path, code: Path) -> int:
    """Assemble the image, and say of it that it was verified; return its bytes."""
    shutil.rmtree(paths.IMAGE, ignore_errors=True)
    layout, layers = assemble.assemble(engine, weights, code, {}, {}, {}, paths.IMAGE / "layout")
    for name in ("sbom.cdx.json", "provenance.json"):
        (paths.IMAGE / name).write_text("{}")
    paths.REPORT.parent.mkdir(exist_ok=True)
    for report in (paths.REPORT, paths.PAGE):
        report.write_text("# Report\n")
    green = Check(name="ready", passed=True, found="ready", expected="ready")
    Verification(image=layout.image.digest, checks=(green,)).save(paths.VERIFICATION)
    return sum(layer.bytes for layer in layers)
