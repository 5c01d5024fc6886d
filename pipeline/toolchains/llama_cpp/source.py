"""llama.cpp's source: one distribution with its digest, and the patches that the repository keeps for it."""

import os
import re
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipeline import digests, processes
from pipeline.errors import BuildError, RequirementError

PIN = Path(__file__).parents[2] / "backends" / "gguf" / "llama_cpp.txt"
PATCHES = Path(__file__).parent / "patches"
"""Applied in the order of their names. Each says at its head why it is there, and when it goes."""

INSIDE = Path("vendor/llama.cpp")
"""Where llama.cpp lies in the distribution; patches name files from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One line of a pip requirement file: the exact source, and the digest that proves it."""

    project: str
    version: str
    sha256: str


def read_pin(path: Path) -> Pin:
    """Read the one requirement of a pin file."""
    pattern = r"^([A-Za-z0-9._-]+)==([^\s]+) +--hash=sha256:([0-9a-f]{64})$"
    found = re.findall(pattern, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if len(found) != 1:
        raise RequirementError(f"{path}: expected one line like `name==1.2 --hash=sha256:<64 hex digits>`")
    project, version, sha256 = found[0]
    return Pin(project=project, version=version, sha256=sha256)


def patches() -> dict[str, str]:
    """Return the digest of each patch by its name."""
    return {path.name: digests.of_file(path) for path in sorted(PATCHES.glob("*.patch"))}


def download(pin: Pin, into: Path) -> Path:
    """Fetch the source distribution through pip, and check its digest once more ourselves before it is unpacked."""
    tqdm.write(f"downloading {pin.project} {pin.version}", file=sys.stderr)
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


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a distribution, apply the patches; return the folder of llama.cpp in it."""
    into.mkdir()
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):  # Debian 12's Python is older than it; the digest vouches for the content
            tar.extractall(into, filter="data")
        else:
            tar.extractall(into)
    (root,) = into.iterdir()
    # Of no repository: inside of one, git passes over files that are not that one's.
    outside = {**os.environ, "GIT_DIR": os.devnull}
    for name in patches():
        command = ["git", "apply", str(PATCHES / name)]
        processes.run(command, what=f"patch {name}", cwd=root / INSIDE, env=outside)
    return root / INSIDE
