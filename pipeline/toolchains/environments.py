"""Isolated Python environments, for tools whose pins the main one cannot keep.

Made with venv and pip from a requirement file that pins everything, dependencies too; where wheels come from is for
pip's own configuration to say, and with it which of torch's builds. An environment cannot be moved once it is made, so
it is filled in a folder of its own, and a link is put beside it at the end: what an interrupted build left has no link.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import digests, processes
from pipeline.errors import BuildError, RequirementError, StorageError
from pipeline.toolchains import isolated, store

FREE_BYTES = 3 * 2**30
"""Room that torch for the CPU takes, with what an exporter needs beside it, unpacked and as wheels."""
LAYOUT = 1
"""Raise when the same requirements are installed in another way."""

OURS = Path(getattr(sys, "_base_executable", sys.executable))
"""The interpreter below the main environment."""

FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")
"""Environment variables that are removed: they would bring the main environment's packages into an isolated one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A finished environment."""

    name: str
    root: Path

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.tool("python")

    def tool(self, name: str) -> Path:
        """Return the path of one program that a package brought."""
        return self.root / "bin" / name

    def version(self, package: str) -> str:
        """Return the version of an installed package, without starting the interpreter."""
        (site,) = self.root.glob("lib/python3.*/site-packages")
        (found,) = importlib.metadata.distributions(name=package, path=[str(site)])
        return found.version


def environment(name: str, requirements: Path, python: Path | None = None) -> Environment:
    """Return the environment of a requirement file, making it now if it is not there; a second process waits.

    `python` is another interpreter than this one's. Raises RequirementError when it is missing, BuildError with pip's
    last lines, StorageError when the disk is full.
    """
    interpreter = python or OURS
    link = store.root() / f"{name}-{_key(requirements, interpreter)}"
    if not _complete(link):
        with store.locked(name, FREE_BYTES):
            if not _complete(link):
                _build(name, requirements, interpreter, link)
    return Environment(name=name, root=link.resolve())


def interpreter(*versions: str) -> Path:
    """Find a Python of one of these versions, such as "3.10", the first one first; RequirementError where none is."""
    for version in versions:
        if (found := shutil.which(f"python{version}")) is not None:
            return Path(found)
    wanted = " or ".join(versions)
    raise RequirementError(
        f"Python {wanted} is needed and is not installed; run `apt-get install python{versions[0]}`, or put one of "
        f"another origin on PATH as python{versions[0]}"
    )


def call(
    environment: Environment,
    script: Path,
    job: Mapping[str, Any],
    *,
    what: str,
    progress: processes.Count | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run `run(job)` of a script in an environment, and return what it returns: JSON in and JSON out.

    `what` names the work in errors and on the progress bar, `env` adds to the environment variables. The script sees
    its environment's packages alone, and Python hashes strings alike each time. BuildError with its last lines when it
    raises or does not return, NativeCrashError with its stack when it dies by a signal; it ends when this process does.
    """
    with tempfile.TemporaryDirectory(prefix="assay-") as scratch:
        given, result = Path(scratch) / "job.json", Path(scratch) / "result.json"
        given.write_text(json.dumps(job), encoding="utf-8")
        processes.run(
            [environment.python, isolated.__file__, script.resolve(), given, result],
            what=what,
            env={**_plain(), "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **(env or {})},
            cwd=Path(scratch),
            stdin=subprocess.PIPE,  # stays open and empty: its end tells the script that we are gone
            progress=progress,
        )
        if not result.exists():
            raise BuildError(f"{what} ended without an error and without a result; {script.name} must not exit itself")
        value: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return value


def _key(requirements: Path, interpreter: Path) -> str:
    """Digest of what is installed, and into what: packages with compiled code fit one version of Python."""
    version = sys.version
    if interpreter != OURS:
        if not interpreter.exists():
            raise RequirementError(f"{interpreter} is not there; install that version of Python, or name another")
        version = processes.run([interpreter, "-c", "import sys; print(sys.version)"], what=str(interpreter))
    return digests.of_value([LAYOUT, _lines(requirements), str(interpreter), version])[:16]


def _complete(link: Path) -> bool:
    """Tell whether it is there, and the interpreter that it was made with, too."""
    return (link / "bin" / "python").exists()


def _lines(requirements: Path) -> list[str]:
    """Return the requirements, comments left out. RequirementError for one that is not pinned."""
    lines = [line.strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    wanted = [line for line in lines if line and not line.startswith("#")]
    for line in wanted:
        if not re.fullmatch(r"[A-Za-z0-9._-]+==\S+", line):
            raise RequirementError(f"{requirements}: {line!r} is not pinned; expected a line like `name==1.2`")
    return wanted


def _build(name: str, requirements: Path, interpreter: Path, link: Path) -> None:
    """Fill a new folder and link it; the caller holds the lock, so every folder of this name without a link is stale.

    A process whose parent was killed may still be writing into one of those, which is why none is used twice.
    """
    link.unlink(missing_ok=True)  # it leads nowhere
    for stale in store.root().glob(f"{link.name}.*"):
        shutil.rmtree(stale, ignore_errors=True)
    store.check_free(name, FREE_BYTES)
    root = Path(tempfile.mkdtemp(prefix=f"{link.name}.", dir=store.root()))
    try:
        # Our own pip installs into it: to put one there takes longer than all else, and needs a package on Debian.
        processes.run([interpreter, "-m", "venv", "--without-pip", root], what=f"venv for {name}", env=_plain())
        _install(name, requirements, root)
        link.symlink_to(root.name)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise


def _install(name: str, requirements: Path, root: Path) -> None:
    """Have pip install everything at once, so that it sees all the pins; then have it check that they agree."""
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", root / "bin" / "python"]
    pip += ["--disable-pip-version-check", "--no-input"]
    wanted = len(_lines(requirements))
    command = [*pip, "install", "--progress-bar", "off", "-r", requirements.resolve()]
    try:
        processes.run(command, what=f"installing {name}", env=_plain(), progress=_collected(wanted))
    except StorageError as error:
        raise StorageError(f"{root}: no space left to install {name}; it needs {FREE_BYTES >> 20} MiB") from error
    except BuildError as error:
        raise BuildError(f"{error}\n`{sys.executable} -m pip config list` shows where pip looks") from error
    processes.run([*pip, "check"], what=f"pip check of {name}", env=_plain())


def _collected(total: int) -> processes.Count:
    """Count the packages that pip has found, out of those that are listed."""
    seen: set[str] = set()

    def count(line: str) -> tuple[int, int] | None:
        if (match := re.match(r"(?:Collecting|Processing) (\S+)", line)) is None:
            return None
        seen.add(match[1])
        return len(seen), max(total, len(seen))

    return count


def _plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in FOREIGN}
