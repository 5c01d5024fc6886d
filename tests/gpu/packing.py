"""Gathering what a rented machine with a GPU lacks, for one without network.

The folder has a part for each time that something is brought along: `1` holds wheels and llama.cpp's source, and both
hold a checkpoint's pieces where one is named. Each part keeps within the limit of pack.toml.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.toolchains.llama_cpp import bindings_wheel, source
from tests.gpu import pieces
from tests.gpu.layout import CHECKPOINT, LLAMA_CPP, ROOT, SIZES, WHEELS

CONTENTS = Path(__file__).with_name("pack.toml")
MIB = 2**20


@dataclass(frozen=True)
class Size:
    """One file of the pack."""

    part: str
    name: str
    bytes: int


def pack(folder: Path, python: str, checkpoint: Path | None) -> list[Size]:
    """Fill `folder`, at once or not at all; return what is in it.

    `python` is an interpreter of that machine's version, which builds the wheels that the registry has not. SystemExit
    says what is missing or too large.
    """
    contents: dict[str, Any] = tomllib.loads(CONTENTS.read_text(encoding="utf-8"))
    _check(python, contents["python"])
    partial, work = (folder.with_name(f"{folder.name}.{word}") for word in ("partial", "work"))
    for stale in (partial, work):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        _wheels(partial / "1" / WHEELS, python, contents)
        _llama_cpp(partial / "1", work, contents["llama_cpp"])
        if problems := unmet((partial / "1" / WHEELS).glob("*.whl"), contents):
            raise SystemExit("pack: add to pack.toml, to `there` or to `wheels`:\n  " + "\n  ".join(problems))
        limit = contents["limit_mib"] * MIB
        if checkpoint is not None:
            _checkpoint(partial, checkpoint, limit)
        found = sizes(partial)
        within(found, limit)
        (partial / SIZES).write_text(_table(found), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
    print(_table(found))
    return found


def sizes(folder: Path) -> list[Size]:
    """List the files of a pack by part, the largest first."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]
    parts = [(path.relative_to(folder), path.stat().st_size) for path in files]
    found = [Size(part=path.parts[0], name=str(Path(*path.parts[1:])), bytes=count) for path, count in parts]
    return sorted(found, key=lambda one: (one.part, -one.bytes, one.name))


def unmet(wheels: Iterable[Path], contents: dict[str, Any]) -> list[str]:
    """Name what the wheels need and neither they nor that machine have."""
    needs = {path: _metadata(path) for path in wheels}
    had = {canonicalize_name(name) for name in [*contents["there"], *contents["unneeded"]]}
    had |= {canonicalize_name(metadata["Name"]) for metadata in needs.values()}
    there = {"python_version": contents["python"], "python_full_version": f"{contents['python']}.0", "extra": ""}
    found = set()
    for path, metadata in needs.items():
        for line in metadata.get_all("Requires-Dist", []):
            need = Requirement(line)
            wanted = need.marker is None or need.marker.evaluate({**there, "sys_platform": "linux"})
            if wanted and canonicalize_name(need.name) not in had:
                found.add(f"{need.name}, which {path.name} needs")
    return sorted(found)


def _check(python: str, wanted: str) -> None:
    """Refuse another interpreter than one of that machine's version."""
    command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError as error:
        said = str(error)
    if said != wanted:
        raise SystemExit(f"pack: {python} is not Python {wanted} ({said or 'it does not start'}); name one by --python")


def _wheels(into: Path, python: str, contents: dict[str, Any]) -> None:
    pins = pinned(contents["wheels"])
    take = ["download", "--only-binary=:all:", "--python-version", contents["python"], "--dest", str(into)]
    _pip([sys.executable], [*take, *pins])
    _pip([python], ["wheel", "--wheel-dir", str(into), *pinned(contents["built"])])


def pinned(names: Sequence[str]) -> list[str]:
    """Give names the versions of constraints.txt, whose own Python is another one."""
    known = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    versions = {canonicalize_name(name): version for name, version in known}
    if unknown := [name for name in names if canonicalize_name(name) not in versions]:
        raise SystemExit(f"pack: constraints.txt has no version of {', '.join(unknown)}")
    return [f"{name}=={versions[canonicalize_name(name)]}" for name in names]


def _pip(python: Sequence[str], words: Sequence[str]) -> None:
    verb, *rest = words
    command = [*python, "-m", "pip", verb, "--quiet", "--no-deps", "--disable-pip-version-check", *rest]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"pack: pip {verb} failed:\n{done.stdout[-3000:]}")


def _llama_cpp(part: Path, work: Path, contents: dict[str, Any]) -> None:
    """Bring the patched source, cut down, and the wheel of its bindings."""
    archive = source.download(source.read_pin(source.PIN), work / "download")
    bindings_wheel(archive, part / WHEELS)
    unpacked = source.unpack(archive, work / "source")
    for name in contents["dropped"]:
        path = unpacked / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with tarfile.open(part / LLAMA_CPP, "w:xz") as tar:
        for name in contents["kept"]:
            tar.add(unpacked / name, arcname=name)


def _checkpoint(parts: Path, checkpoint: Path, limit: int) -> None:
    """Fill the first part up to the limit with the checkpoint's files, and put the others into the second."""
    left = limit - sum(one.bytes for one in sizes(parts))
    for name, content in pieces.encode(checkpoint):
        part = "1" if len(content) <= left else "2"
        left -= len(content) if part == "1" else 0
        path = parts / part / CHECKPOINT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def within(found: Sequence[Size], limit: int) -> None:
    """Refuse a part that is larger than what is brought at one time, and name its largest files."""
    for part, total in totals(found).items():
        if total > limit:
            largest = [f"{one.bytes / MIB:7.2f} MiB  {one.name}" for one in found if one.part == part][:5]
            raise SystemExit(
                f"pack: part {part} has {total / MIB:.1f} MiB, at most {limit / MIB:g} are brought at one time; the "
                "largest:\n" + "\n".join(largest)
            )


def totals(found: Sequence[Size]) -> dict[str, int]:
    """Add up each part."""
    return {part: sum(one.bytes for one in found if one.part == part) for part in sorted({one.part for one in found})}


def _table(found: Sequence[Size]) -> str:
    lines = [f"{part} {total / MIB:8.2f} MiB  together" for part, total in totals(found).items()]
    return "\n".join([*lines, *(f"{one.part} {one.bytes / MIB:8.2f} MiB  {one.name}" for one in found)]) + "\n"


def _metadata(wheel: Path) -> Any:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return Parser().parsestr(archive.read(name).decode())
