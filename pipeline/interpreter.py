"""Whether this is the interpreter of the clone's own environment, and what to do where it is another one."""

import sys
from pathlib import Path

ENVIRONMENT = Path(__file__).resolve().parents[1] / ".venv"
"""What `make setup` makes."""


def advice(module: str | None) -> str | None:
    """Say what to do where a package cannot be imported; None where the clone's own environment lacks it."""
    if Path(sys.prefix).resolve() == ENVIRONMENT.resolve():
        return None
    made = (ENVIRONMENT / "bin" / "activate").exists()
    remedy = f"`source {ENVIRONMENT}/bin/activate` goes before it" if made else "`make setup` makes an environment"
    return f"{sys.executable} has no package {module}, which Assay needs; {remedy}"
