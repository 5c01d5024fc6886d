"""Makes .venv and the native tools, once; `make` runs it first, with whatever Python is there and nothing installed.

A second run finds both finished and takes a fraction of a second. An interrupted run leaves no stamp, so the next one
starts over.
"""

import hashlib
import shutil
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "assay-stamp"
EXTRAS = "gguf,gptq,awq,onnx,dev"


def main() -> int:
    """Set everything up; return the exit code."""
    missing = missing_prerequisites()
    if missing:
        print("assay: this machine lacks\n" + "\n".join(f"  {line}" for line in missing), file=sys.stderr)
        return 1
    key = hashlib.sha256(
        b"\0".join(
            [(ROOT / "pyproject.toml").read_bytes(), (ROOT / "constraints.txt").read_bytes(), sys.version.encode()]
        )
    ).hexdigest()
    if not STAMP.exists() or STAMP.read_text() != key:
        install()
        STAMP.write_text(key)
    return subprocess.run([PYTHON, "-m", "pipeline", "toolchain"], cwd=ROOT, check=False).returncode


def missing_prerequisites() -> list[str]:
    """Name each missing prerequisite with the Debian or Ubuntu command that installs it."""
    missing = []
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        found = ".".join(map(str, sys.version_info[:2]))
        missing.append(f"Python 3.11 or 3.12 (found {found}): apt-get install python3.11, then make PYTHON=python3.11")
    if find_spec("ensurepip") is None:
        missing.append("Python's venv module: apt-get install python3-venv")
    missing += [f"{tool}: apt-get install {tool}" for tool in ("g++", "cmake", "git") if shutil.which(tool) is None]
    return missing


def install() -> None:
    """Make the environment, or bring an existing one up to date. One call, so that pip sees all the pins at once."""
    if not STAMP.exists():
        print("assay: making .venv (about 2 GB, some minutes)", file=sys.stderr)
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
    command: list[str | Path] = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--constraint", "constraints.txt", "--editable", f".[{EXTRAS}]"], cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())
