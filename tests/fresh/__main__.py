"""`make fresh`: the demo, small, on minimal root file systems of the distributions that the README names.

python -m tests.fresh                            every one of them, as a user who is not root
python -m tests.fresh debian-13 ubuntu-24.04     these
python -m tests.fresh --as root debian-12        as root
python -m tests.fresh --keep debian-13           leaves the root file system there, to be looked at

Each gets only the packages that the README names, a clone of the commit that is checked out here, and an empty home.
About half an hour each on 2 cores: llama.cpp is compiled in each. It needs root, for mounts, and mmdebstrap; apt and
pip reach their mirrors as they do outside. Never part of the tests.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.fresh import small
from tests.fresh.distributions import DISTRIBUTIONS, USER, USER_ID, root
from tests.fresh.machine import Machine, started

ARTIFACTS = ("gguf-q8_0", "onnx-int4")


@dataclass(slots=True, kw_only=True)
class Row:
    """What came of one distribution."""

    title: str
    user: str
    python: str = ""
    setup_seconds: float | None = None
    demo_seconds: float | None = None
    """After the setup: build, measure, rank, pack, verify."""
    winner: str | None = None
    verified: bool = False
    reason: str = ""
    """Why there is no verified image."""


def main() -> int:
    """Run the distributions that were named, or all; return 1 when one has no verified image."""
    parser = argparse.ArgumentParser(prog="python -m tests.fresh")
    parser.add_argument("distributions", nargs="*", metavar="DISTRIBUTION", help=", ".join(DISTRIBUTIONS))
    parser.add_argument("--as", dest="user", choices=(USER, "root"), default=USER)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.distributions) - set(DISTRIBUTIONS)):
        parser.error(f"{unknown[0]}: no such distribution; known: {', '.join(DISTRIBUTIONS)}")
    if os.geteuid() != 0:
        parser.error("needs root, to mount the root file systems that it makes")
    rows: list[Row] = []
    for name in arguments.distributions or DISTRIBUTIONS:
        distribution = DISTRIBUTIONS[name]
        row = Row(title=distribution.title, user=arguments.user)
        rows.append(row)
        with started(root(distribution), name, arguments.user, keep=arguments.keep) as machine:
            _demo(machine, row)
        _show(rows)
    return int(not all(row.verified for row in rows))


def _demo(machine: Machine, row: Row) -> None:
    clone = machine.home / "assay"
    _clone(machine, machine.outside(clone))
    version = machine.home / "python-version"
    machine.run("sh", "-c", f"python3 --version > {version}")
    row.python = machine.outside(version).read_text(encoding="utf-8").split()[-1]
    row.setup_seconds, code = _timed(machine, clone, "setup")
    if code != 0:
        row.reason = f"make setup exited with {code}; see {machine.log}"
        return
    row.demo_seconds, code = _timed(machine, clone, "demo")
    outside = machine.outside(clone)
    if (outside / "selection.json").exists():
        row.winner = json.loads((outside / "selection.json").read_text(encoding="utf-8"))["winner"]
    if code != 0:
        row.reason = f"make demo exited with {code}; see {machine.log}"
        return
    found = json.loads((outside / "verification.json").read_text(encoding="utf-8"))
    failed = [check["name"] for check in found["checks"] if not check["passed"]]
    row.verified = found["unavailable"] is None and bool(found["checks"]) and not failed
    row.reason = found["unavailable"] or (f"failed: {', '.join(failed)}" if failed else "")


def _clone(machine: Machine, target: Path) -> None:
    small.clone(target, ARTIFACTS)
    owner = "0:0" if machine.user == "root" else f"{USER_ID}:{USER_ID}"
    subprocess.run(["chown", "-R", owner, target], check=True)


def _timed(machine: Machine, clone: Path, goal: str) -> tuple[float, int]:
    began = time.monotonic()
    code = machine.run("make", goal, cwd=clone)
    return time.monotonic() - began, code


def _show(rows: list[Row]) -> None:
    table = Table("distribution", "user", "Python", "setup, s", "demo, s", "winner", "image")
    for row in rows:
        seconds = (f"{each:.0f}" if each is not None else "-" for each in (row.setup_seconds, row.demo_seconds))
        image = "verified" if row.verified else row.reason
        table.add_row(row.title, row.user, row.python, *seconds, row.winner or "-", image)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
