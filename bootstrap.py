"""Makes .venv and the native tools, once; `make` runs it first, with whatever Python is there and nothing installed.

A second run finds both finished and takes a fraction of a second. An interrupted run leaves no stamp, so the next one
starts over. Where this Python is not a supported one and another on PATH is, that one goes on. So this file keeps to
what Python 3.8 understands.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "assay-stamp"
EXTRAS = "gguf,gptq,awq,onnx"
DEVELOPMENT = "--dev"
"""What tests, lint and benchmarks need is installed where this is on the command line: 88 packages more."""

TOOLCHAIN = ("diskcache", "jinja2", "ninja", "numpy", "pydantic", "tqdm")
"""What building and trying llama.cpp takes: installed first, so that the rest is installed meanwhile."""

BYTECODE = "import sys; sys.dont_write_bytecode = False\n"
"""Packages are installed without bytecode, which is written when a module is first imported. PYTHONDONTWRITEBYTECODE,
which many images of containers set, would have each process compile torch and transformers again: ten seconds."""

OLDEST, NEWEST, TESTED = 11, 14, 13
"""Minor versions of Python 3: those that pyproject.toml takes, and the newest whose packages were installed."""


def main() -> int:
    """Set everything up; return the exit code."""
    if not OLDEST <= sys.version_info.minor <= NEWEST:
        other = supported()
        if other is not None:
            os.execv(other, [other, __file__, *sys.argv[1:]])
    missing = missing_prerequisites()
    if missing:
        print("assay: this machine lacks\n" + "\n".join("  " + line for line in missing), file=sys.stderr)
        return 1
    extras = f"{EXTRAS},dev" if DEVELOPMENT in sys.argv[1:] else EXTRAS
    pins = [(ROOT / "pyproject.toml").read_bytes(), (ROOT / "constraints.txt").read_bytes(), sys.version.encode()]
    key = hashlib.sha256(b"\0".join(pins)).hexdigest()
    current = up_to_date(key, extras)
    if not current:
        prepare()
    with subprocess.Popen([PYTHON, "-m", "pipeline", "toolchain"], cwd=ROOT) as toolchain:
        if not current:
            try:
                pip("--editable", f".[{extras}]")
            except BaseException:
                toolchain.terminate()
                raise
            STAMP.write_text(f"{key} {extras}")
    return toolchain.returncode


def up_to_date(key: str, extras: str) -> bool:
    """Tell whether the environment was made of these pins, with these extras or more."""
    made, _, held = STAMP.read_text().partition(" ") if STAMP.exists() else ("", "", "")
    return made == key and set(extras.split(",")) <= set(held.split(","))


def supported() -> str | None:
    """Find a supported Python on PATH that starts, the newest tested one first; a version manager's may not."""
    for minor in [*range(TESTED, OLDEST - 1, -1), *range(TESTED + 1, NEWEST + 1)]:
        found = shutil.which(f"python3.{minor}")
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    return None


def missing_prerequisites() -> list[str]:
    """Name what is missing, all at once, and the command that installs it on Debian and Ubuntu."""
    packages: dict[str, str] = {}
    minor = sys.version_info.minor
    if not OLDEST <= minor <= NEWEST:
        needed = f"Python 3.{OLDEST} to 3.{NEWEST} (`{sys.executable}` is 3.{minor})"
        return [f"{needed}; {python_advice()}"]
    if find_spec("ensurepip") is None:
        packages[f"python3.{minor}-venv"] = "Python's venv module"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        packages[f"python3.{minor}-dev"] = "Python's header files, which packages in C++ are compiled with"
    packages.update({tool: tool for tool in ("g++", "cmake", "git") if shutil.which(tool) is None})
    if not packages:
        return []
    return [*packages.values(), "On Debian and Ubuntu this installs it:", f"  {apt(*packages)}"]


def python_advice() -> str:
    """Say how a supported Python comes onto this distribution."""
    system = release()
    name = system.get("PRETTY_NAME", "this system")
    minor = {("debian", "12"): 11, ("debian", "13"): 13, ("ubuntu", "24.04"): 12, ("ubuntu", "26.04"): 14}.get(
        (system.get("ID", ""), system.get("VERSION_ID", ""))
    )
    if minor is None:
        other = f"put one on PATH as python3.{TESTED}, for instance by `uv python install 3.{TESTED}`"
        return f"{name} brings none that we know of: {other}, and run make again"
    install = apt(f"python3.{minor}", f"python3.{minor}-venv", f"python3.{minor}-dev")
    return f"{name} has 3.{minor}: run `{install}`, then make again"


def release() -> dict[str, str]:
    """Read /etc/os-release."""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines)
    return {key: value.strip("\"'") for key, _, value in pairs}


def apt(*packages: str) -> str:
    """Return the command that installs these packages."""
    root = "" if os.geteuid() == 0 else "sudo "
    return f"{root}apt-get install {' '.join(packages)}"


def prepare() -> None:
    """Make the environment, unless it is there, and put into it what llama.cpp's build takes."""
    minor = sys.version_info.minor
    if minor > TESTED:
        print(f"assay: every package is there for Python 3.{minor}, but Assay never ran on it", file=sys.stderr)
    if not STAMP.exists():
        print("assay: making .venv (about 2 GB, some minutes)", file=sys.stderr)
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
    for packages in ENVIRONMENT.glob("lib/python*/site-packages"):
        (packages / "bytecode.pth").write_text(BYTECODE)
    pip(*TOOLCHAIN)


def pip(*packages: str) -> None:
    """Install these with all that they need, in the pinned versions."""
    # Modules are compiled when they are first imported. Most of the 19,000 never are; all of them take 100 s of a core.
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*command, "--constraint", "constraints.txt", *packages], cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())
