"""Python packages of an image: named with their hashes in the repository, downloaded here, installed without a network.

Each `containers/engines/NAME/image/requirements.txt` lists everything that is installed, so nothing is resolved while
an image is built. It is written by `assay images lock` from its own names and the versions of constraints.txt, with the
hashes of the wheels for every Python and machine that an image can have; a line of it says for which ones all were
found. Which of torch's builds is taken, for the CPU or for CUDA, is decided by the version's local label. Packages that
publish no wheels are listed in a `sources.txt` beside it, and are built in the build image.
"""

import json
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging import requirements

from pipeline import digests, oci, processes
from pipeline.engines import ENGINES
from pipeline.errors import BuildError, ParamsError, RequirementError
from pipeline.images import cache, manifest
from pipeline.images.manifest import ROOT
from pipeline.records import Package, Record

CONSTRAINTS = ROOT / "constraints.txt"

PYTHONS = ("3.11", "3.12", "3.13")
"""Versions that a base image can have."""

GLIBC = (17, 24, 26, 27, 28, 31, 34, 35, 36)
"""Second halves of the glibc versions that wheels are built for, up to the oldest of images.toml's bases."""
LEGACY = {"x86_64": ("manylinux2014", "manylinux2010", "manylinux1", "linux"), "aarch64": ("manylinux2014", "linux")}
"""Other names of platforms, by machine."""

REQUIREMENTS, SOURCES = "requirements.txt", "sources.txt"
FOUND = "# All found for:"


class Target(Record):
    """What wheels are chosen for, whatever this machine runs."""

    python: str
    machine: str
    """As uname calls it."""

    def __str__(self) -> str:
        return f"{self.python} {self.machine}"

    @property
    def flags(self) -> Iterator[str]:
        """How pip is told."""
        abi = f"cp{self.python.replace('.', '')}"
        yield from ("--python-version", self.python, "--implementation", "cp", "--only-binary", ":all:")
        yield from (word for name in (abi, "abi3", "none") for word in ("--abi", name))
        names = (*(f"manylinux_2_{minor}" for minor in GLIBC), *LEGACY[self.machine])
        yield from (word for name in names for word in ("--platform", f"{name}_{self.machine}"))


class Requirement(Record):
    """One line of a requirements file."""

    name: str
    version: str
    hashes: tuple[str, ...]
    """sha256 of each target's wheel, or of the source distribution."""


def read(path: Path) -> tuple[Requirement, ...]:
    """Read a requirements file; every line must have its hashes."""
    found = []
    for line in _lines(path):
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)", line)
        if match is None:
            raise ParamsError(f"{path}: {line!r} is not name==version --hash=sha256:...; run `assay images lock`")
        hashes = tuple(word.removeprefix("--hash=sha256:") for word in match[3].split())
        found.append(Requirement(name=match[1], version=match[2], hashes=hashes))
    return tuple(found)


def pythons(engine: str, machine: str | None = None) -> frozenset[str]:
    """Return the Pythons that an engine's packages were all found for, on `machine`, else on this one."""
    covered = [_covered(path) for path in files(manifest.parts(engine)) if path.name != SOURCES]
    everywhere = frozenset.intersection(*covered) if covered else frozenset()
    return frozenset(target.python for target in everywhere if target.machine == (machine or platform.machine()))


def wheelhouse(path: Path, python: str) -> Path:
    """Return a folder with what a requirements file lists for a Python, downloading it if it is not there."""
    target = Target(python=python, machine=platform.machine())
    if path.name != SOURCES and target not in _covered(path):
        raise RequirementError(
            f"{_engine(path)}: {path.name} has no wheels for Python {python} on {target.machine}; name another base "
            "in image.base, or run `assay images lock` where pip finds them"
        )

    def fill(folder: Path) -> None:
        _download(path, target, folder, "--require-hashes", "-r", str(path))

    return cache.folder(f"wheels-{digests.of_value([digests.of_file(path), str(target)])[:16]}", fill)


def installed(engine: str, python: str) -> tuple[Package, ...]:
    """List what is installed in an engine's image, tools of its build left out: the very files of `wheelhouse`."""
    found = []
    for path in (manifest.parts(engine) / name for name in (REQUIREMENTS, SOURCES)):
        versions = {_normal(one.name): one.version for one in read(path)} if path.exists() else {}
        for file in sorted(wheelhouse(path, python).iterdir()) if versions else ():
            name = _normal(re.split(r"-\d", file.name)[0])
            found.append(Package(name=name, version=versions[name], sha256=digests.of_file(file)))
    return tuple(sorted(found, key=lambda one: one.name))


def _engine(path: Path) -> str:
    """Return the engine whose requirements file this is."""
    return path.parent.parent.name


def locked() -> list[Path]:
    """List all requirements files."""
    return [file for engine in sorted(ENGINES) for file in files(manifest.parts(engine))]


def files(folder: Path) -> list[Path]:
    """List the requirements files of one engine."""
    return sorted([*folder.glob(f"*{REQUIREMENTS}"), *folder.glob(SOURCES)])


def targets(engine: str) -> list[Target]:
    """List what an engine's packages are locked for."""
    pin = manifest.load().public(engine)
    return [Target(python=each, machine=machine) for machine in oci.PLATFORMS for each in _pythons(pin)]


def _pythons(pin: manifest.Pin | None) -> tuple[str, ...]:
    return (pin.python,) if pin else PYTHONS


Known = dict[tuple[Target, str], str]
"""The wheels' hashes that pip was asked for, by target and name==version."""


def lock(path: Path, known: Known) -> dict[Target, str]:
    """Write a requirements file again: its own names, the versions of constraints.txt, the hashes of those wheels.

    Returns why targets were left out: pip does not find a wheel of everything for them. BuildError where it finds none
    for any. `known` is added to: engines have most packages in common.
    """
    wanted = _wanted(path)
    found: dict[Target, dict[str, str]] = {}
    failed: dict[Target, str] = {}
    # A source is the same for all.
    for target in targets(_engine(path))[: 1 if path.name == SOURCES else None]:
        try:
            found[target] = (
                _source_hashes(path, target, wanted) if path.name == SOURCES else _hashes(target, wanted, known)
            )
        except BuildError as error:
            failed[target] = str(error)
    if not found:
        raise BuildError(f"{path}: {next(iter(failed.values()))}")
    text = path.read_text(encoding="utf-8").splitlines()
    lines = [line for line in text if line.startswith("#") and not line.startswith(FOUND)]
    lines += [] if path.name == SOURCES else [f"{FOUND} {', '.join(map(str, found))}"]
    for name, asked in wanted.items():
        hashes = dict.fromkeys(each[name] for each in found.values())  # without what several share
        lines.append(f"{asked} {' '.join(f'--hash=sha256:{one}' for one in hashes)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return failed


def _wanted(path: Path) -> dict[str, str]:
    """Return name==version of a file's packages, by normal name."""
    versions = pinned()
    wanted = {}
    for line in _lines(path):
        match = re.match(r"([A-Za-z0-9._-]+)(?:==[^+\s]+(\+\S+)?)?", line)
        if match is None or _normal(match[1]) not in versions:
            raise ParamsError(f"{path}: constraints.txt has no version of {line.split()[0]}")
        # A local label, such as torch's +cpu, is the file's own.
        wanted[_normal(match[1])] = f"{_normal(match[1])}=={versions[_normal(match[1])]}{match[2] or ''}"
    return dict(sorted(wanted.items()))


def _hashes(target: Target, wanted: dict[str, str], known: Known) -> dict[str, str]:
    """Ask pip which wheels it would install, without downloading those whose hash the index tells."""
    new = [asked for asked in wanted.values() if (target, asked) not in known]
    with TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--dry-run", "--ignore-installed"]
        command += ["--target", scratch, "--report", str(report), *target.flags, *new]
        if new:
            processes.run(command, what=f"pip's choice for {target}")
        for one in json.loads(report.read_text(encoding="utf-8"))["install"] if new else ():
            asked = wanted[_normal(one["metadata"]["name"])]
            known[target, asked] = one["download_info"]["archive_info"]["hashes"]["sha256"]
    return {name: known[target, asked] for name, asked in wanted.items()}


def _source_hashes(path: Path, target: Target, wanted: dict[str, str]) -> dict[str, str]:
    with TemporaryDirectory() as scratch:
        _download(path, target, Path(scratch), *wanted.values())
        return {_normal(re.split(r"-\d", file.name)[0]): digests.of_file(file) for file in Path(scratch).iterdir()}


def _download(path: Path, target: Target, into: Path, *what: str) -> None:
    # pip asks a source's own build for its metadata: with what is here, instead of a torch of its own.
    kind = ("--no-binary", ":all:", "--no-build-isolation") if path.name == SOURCES else target.flags
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(into), *kind, *what]
    processes.run(command, what=f"download for {_engine(path)}, {path.name}")


def pinned() -> dict[str, str]:
    """Read constraints.txt, as it holds for the Python that runs this."""
    pins = [requirements.Requirement(line) for line in _lines(CONSTRAINTS)]
    held = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return {_normal(pin.name): str(pin.specifier).removeprefix("==") for pin in held}


def _covered(path: Path) -> frozenset[Target]:
    """Read for which targets all wheels of a file were found."""
    line = next((one for one in path.read_text(encoding="utf-8").splitlines() if one.startswith(FOUND)), FOUND)
    words = (each.split() for each in line.removeprefix(FOUND).split(","))
    return frozenset(Target(python=each[0], machine=each[1]) for each in words if each)


def _lines(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _normal(name: str) -> str:
    """Write a project's name as PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()
