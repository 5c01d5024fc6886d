"""The winner's image: the engine's layers, then weights, code and evidence, each a layer of its own.

What changes seldom lies low: a change of code or of evaluation leaves the weights' digests as they are, so nothing of
them is pushed or pulled again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from pipeline import oci
from pipeline.oci import Descriptor, Entry
from pipeline.records import Layer

ARTIFACT = PurePosixPath("/artifact")
CODE = PurePosixPath("/opt/assay")
EVIDENCE = PurePosixPath("/evidence")

LAYER_BYTES = 5 * 10**9
"""Registries refuse large layers, GitHub's above 10 GB; half of that leaves room, and lets several come at once."""

PACKAGES = ("containers", "evals", "pipeline")
SUFFIXES = frozenset({".py", ".html", ".txt", ".yaml", ".toml"})
"""Suffixes of code, and of the data that packages read."""

USER = 10001
PORT = 8080

Kind = Literal["engine", "weights", "code", "evidence"]

CONFIG = {
    "User": f"{USER}:{USER}",
    "ExposedPorts": {f"{PORT}/tcp": {}},
    "Entrypoint": [
        *("python3", "-m", "containers.gateway", "--artifact", str(ARTIFACT), "--evidence", str(EVIDENCE)),
    ],
    "WorkingDir": "/tmp",
    "StopSignal": "SIGTERM",
    # No field of OCI's, but of Docker's, which reads it from here; podman reads it from images of Docker's format only
    # and takes it on the command line: --health-cmd "python3 -m containers.gateway.health".
    "Healthcheck": {
        "Test": ["CMD", "python3", "-m", "containers.gateway.health"],
        "Interval": 30 * 10**9,
        "Timeout": 10 * 10**9,
        "StartPeriod": 10 * 10**9,
        "Retries": 3,
    },
}

ENVIRONMENT = {
    "PYTHONPATH": f"{CODE}:/opt/python",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    # The only place that can be written when the root file system is read-only.
    "HOME": "/tmp",
    "HF_HUB_OFFLINE": "1",
}


def assemble(
    engine: oci.Layout,
    weights: Path,
    code: Path,
    evidence: Mapping[str, Path],
    annotations: Mapping[str, str],
    environment: Mapping[str, str],
    into: Path,
) -> tuple[oci.Layout, tuple[Layer, ...]]:
    """Write the image's layout; return it with its layers.

    `weights` is the artifact's folder, `code` the folder that holds PACKAGES, `evidence` files by their names,
    `environment` what the gateway is set to beside ENVIRONMENT.
    """
    layout = oci.Layout.create(into)
    parts: list[tuple[Kind, Descriptor]] = []
    for layer in engine.layers:
        layout.take(engine, layer)
        parts.append(("engine", layer))
    for bundle in bundles(sorted(path for path in weights.rglob("*") if path.is_file()), LAYER_BYTES):
        parts.append(("weights", layout.add_layer(_placed(bundle, weights, ARTIFACT))))
    parts.append(("code", layout.add_layer(_placed(code_files(code), code, CODE))))
    records = [Entry(path=EVIDENCE / name, content=path) for name, path in evidence.items()]
    parts.append(("evidence", layout.add_layer(records)))
    added = [(kind, layer) for kind, layer in parts if kind != "engine"]
    layout.finish(
        _config(engine.config, added, annotations, environment),
        [_described(kind, layer) for kind, layer in parts],
        annotations,
    )
    return layout, tuple(Layer(kind=kind, digest=layer.digest, bytes=layer.size) for kind, layer in parts)


def bundles(files: Iterable[Path], limit: int) -> Iterator[list[Path]]:
    """Gather files, in their order, into bundles of up to `limit` bytes; a larger file is a bundle of its own.

    Files are not cut in pieces: the artifact in the image is the one that was measured, byte by byte.
    """
    bundle: list[Path] = []
    size = 0
    for file in files:
        # With its header, padding, and the end of the archive.
        bytes_ = file.stat().st_size + 3 * 512
        if bundle and size + bytes_ > limit - 2**20:
            yield bundle
            bundle, size = [], 0
        bundle.append(file)
        size += bytes_
    if bundle:
        yield bundle


def code_files(root: Path) -> list[Path]:
    """List what the image runs: PACKAGES and the data beside their modules."""
    found = (path for package in PACKAGES for path in (root / package).rglob("*"))
    return sorted(path for path in found if path.suffix in SUFFIXES and "__pycache__" not in path.parts)


def _placed(files: Sequence[Path], root: Path, at: PurePosixPath) -> list[Entry]:
    return [Entry(path=at / file.relative_to(root).as_posix(), content=file) for file in files]


def _described(kind: Kind, layer: Descriptor) -> Descriptor:
    annotations = {"ai.assay.layer": kind}
    return Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size, annotations=annotations)


def _config(
    engine: Mapping[str, object],
    added: Sequence[tuple[Kind, Descriptor]],
    labels: Mapping[str, str],
    more: Mapping[str, str],
) -> dict[str, object]:
    inner, rootfs, history = engine["config"], engine["rootfs"], engine["history"]
    assert isinstance(inner, dict)
    assert isinstance(rootfs, dict)
    assert isinstance(history, list)
    environment = [*inner["Env"], *(f"{name}={value}" for name, value in {**ENVIRONMENT, **more}.items())]
    return {
        **oci.platform(engine),
        "config": {**CONFIG, "Env": environment, "Labels": dict(labels)},
        "rootfs": {"type": "layers", "diff_ids": [*rootfs["diff_ids"], *(layer.digest for _, layer in added)]},
        "history": [*history, *({"created_by": f"assay image: {kind}"} for kind, _ in added)],
    }
