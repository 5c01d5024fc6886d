"""Python packages of an image: named with their hashes in the repository, downloaded here, installed without a network.

Each `containers/<engine>/requirements.txt` lists everything that is installed, so nothing is resolved at build time. It
is written by `assay images lock` from its own names and the versions of constraints.txt. Wheels are chosen for the
image's Python and libc, whatever this machine runs. Which of torch's builds is taken, for the CPU or for CUDA, is
decided by pip's own configuration, and held fast by the hash. Packages that publish no wheels are listed in a
`sources.txt` beside it, and are built in the build image.
"""

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging import requirements

from pipeline import digests, processes
from pipeline.errors import ParamsError
from pipeline.images import cache, manifest
from pipeline.images.manifest import ROOT
from pipeline.records import Record

CONSTRAINTS = ROOT / "constraints.txt"

GLIBC = (17, 24, 26, 27, 28, 31, 34, 35, 36)
"""Second halves of the glibc versions that wheels are built for, up to that of images.toml's bases."""

SOURCES = "sources.txt"

WHEELS = (
    *(word for minor in GLIBC for word in ("--platform", f"manylinux_2_{minor}_x86_64")),
    *("--platform", "manylinux2014_x86_64", "--platform", "manylinux2010_x86_64", "--platform", "manylinux1_x86_64"),
    *("--platform", "linux_x86_64", "--only-binary", ":all:"),
)


def _python(room: str) -> tuple[str, ...]:
    """Say which Python a room's wheels are for."""
    pin = manifest.load().public(room)
    version = pin.python if pin else "3.11"
    abi = f"cp{version.replace('.', '')}"
    return ("--python-version", version, "--implementation", "cp", "--abi", abi, "--abi", "abi3", "--abi", "none")


class Requirement(Record):
    """One line of a requirements file."""

    name: str
    version: str
    sha256: str
    """Of the wheel, or of the source distribution."""


def read(path: Path) -> tuple[Requirement, ...]:
    """Read a requirements file; every line must have its hash."""
    found = []
    for line in _lines(path):
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+) --hash=sha256:([0-9a-f]{64})", line)
        if match is None:
            raise ParamsError(f"{path}: {line!r} is not name==version --hash=sha256:...; run `assay images lock`")
        found.append(Requirement(name=match[1], version=match[2], sha256=match[3]))
    return tuple(found)


def installed(engine: str) -> tuple[Requirement, ...]:
    """List what is installed in an engine's image, tools of its build left out."""
    room = ROOT / "containers" / engine
    return tuple(one for name in ("requirements.txt", SOURCES) if (room / name).exists() for one in read(room / name))


def house(path: Path) -> Path:
    """Return a folder with what a requirements file lists, downloading it if it is not there."""

    def fill(folder: Path) -> None:
        _download(path, folder, "--require-hashes", "-r", str(path))

    return cache.folder(f"wheels-{digests.of_file(path)[:16]}", fill)


def locked() -> list[Path]:
    """List all requirements files."""
    return [file for room in sorted((ROOT / "containers").iterdir()) for file in files(room)]


def files(room: Path) -> list[Path]:
    """List the requirements files of one engine."""
    return sorted([*room.glob("*requirements.txt"), *room.glob(SOURCES)])


def lock(path: Path) -> int:
    """Write a requirements file again: its own names, the versions of constraints.txt, the hashes of those wheels.

    Returns how many they are.
    """
    versions = pinned()
    names = [re.split(r"[=<> ]", line)[0] for line in _lines(path)]
    unknown = [name for name in names if _normal(name) not in versions]
    if unknown:
        raise ParamsError(f"{path}: constraints.txt has no version of {', '.join(unknown)}")
    with TemporaryDirectory() as scratch:
        _download(path, Path(scratch), *(f"{name}=={versions[_normal(name)]}" for name in names))
        hashes = {_normal(file.name.split("-")[0]): digests.of_file(file) for file in Path(scratch).iterdir()}
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    lines = [f"{name}=={versions[name]} --hash=sha256:{hashes[name]}" for name in sorted(map(_normal, names))]
    path.write_text("\n".join([*comments, *lines]) + "\n", encoding="utf-8")
    return len(lines)


def _download(path: Path, into: Path, *what: str) -> None:
    # pip asks a source's own build for its metadata: with what is here, instead of a torch of its own.
    source = ("--no-binary", ":all:", "--no-build-isolation")
    kind = source if path.name == SOURCES else (*_python(path.parent.name), *WHEELS)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(into), *kind, *what]
    processes.run(command, what=f"download for {path.parent.name}/{path.name}")


def pinned() -> dict[str, str]:
    """Read constraints.txt, as it holds for the Python that runs this."""
    pins = [requirements.Requirement(line) for line in _lines(CONSTRAINTS)]
    held = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return {_normal(pin.name): str(pin.specifier).removeprefix("==") for pin in held}


def _lines(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _normal(name: str) -> str:
    """Write a project's name as PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()
