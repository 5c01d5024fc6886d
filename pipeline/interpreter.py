"""Whether this Assay is a clone or an installed package, and what to do where something that it needs is missing."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The clone, or the site-packages that Assay is installed in."""

ENVIRONMENT = ROOT / ".venv"
"""What `make setup` makes in a clone."""


def cloned() -> bool:
    """Tell whether this is a clone."""
    return (ROOT / "bootstrap.py").exists()


def setup() -> str:
    """Return the command that brings every package and builds llama.cpp."""
    return "make setup" if cloned() else "pip install 'assay-pipeline[all]' && assay toolchain"


def advice(module: str | None) -> str | None:
    """Say what to do where a package cannot be imported; None where the clone's own environment lacks it."""
    if cloned() and Path(sys.prefix).resolve() == ENVIRONMENT.resolve():
        return None
    made = cloned() and (ENVIRONMENT / "bin" / "activate").exists()
    remedy = f"`source {ENVIRONMENT}/bin/activate` goes before it" if made else f"`{setup()}` brings it"
    return f"{sys.executable} has no package {module}, which Assay needs; {remedy}"
