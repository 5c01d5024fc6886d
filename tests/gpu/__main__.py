"""What a GPU makes of Assay, on a rented machine with an NVIDIA GPU, without network.

python -m tests.gpu pack [--checkpoint FOLDER]    here, with network: gathers into .gpu/ what that machine lacks
python -m tests.gpu run --out DIR [--small]       there: installs it aside, works through the list, writes DIR/gpu.json
python -m tests.gpu report gpu.json               prints the rows of docs/gpu.md

A second `run` goes on where the first ended: with what failed or was not reached.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.gpu import layout


def main(words: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    options = _parser().parse_args(words)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("pack", help="gather what that machine lacks")
    command.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="brought along in about 5 bits a weight")
    command.add_argument("--python", default="python3.12", help="an interpreter of that machine's version")
    command.add_argument("--pack", type=Path, default=layout.PACK, metavar="FOLDER")
    command.set_defaults(run=_pack)
    command = commands.add_parser("run", help="install the pack aside and work through the list")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets gpu.json and log.txt")
    command.add_argument("--small", action="store_true", help="every item in a small size, on the CPU where need be")
    command.add_argument("--budget-seconds", type=float, default=540.0, metavar="S", help="for all of it; default: 540")
    command.add_argument("--only", action="append", metavar="NAME", help="this item, and those that it needs")
    command.add_argument(
        "--again", action="store_true", help="also what an earlier run has done; with --only, those items alone"
    )
    command.add_argument("--pack", type=Path, default=layout.PACK, metavar="FOLDER")
    command.add_argument("--work", type=Path, default=layout.WORK, metavar="FOLDER", help="kept from run to run")
    command.set_defaults(run=_run)
    command = commands.add_parser("item", help="one item, in this process: what `run` starts")
    command.add_argument("name")
    command.add_argument("--small", action="store_true")
    command.add_argument("--pack", type=Path, required=True)
    command.add_argument("--work", type=Path, required=True)
    command.set_defaults(run=_item)
    command = commands.add_parser("report", help="print the rows of docs/gpu.md")
    command.add_argument("json", type=Path)
    command.set_defaults(run=_report)
    return parser


def _pack(options: argparse.Namespace) -> int:
    from tests.gpu import packing

    packing.pack(options.pack.resolve(), options.python, options.checkpoint)
    return 0


def _run(options: argparse.Namespace) -> int:
    from tests.gpu import running

    return running.run(
        pack=options.pack.resolve(),
        work=options.work.resolve(),
        out=options.out.resolve(),
        small=options.small,
        budget_seconds=options.budget_seconds,
        only=options.only,
        again=options.again,
    )


def _item(options: argparse.Namespace) -> int:
    from tests.gpu import items

    items.run(options.name, pack=options.pack, work=options.work, small=options.small)
    return 0


def _report(options: argparse.Namespace) -> int:
    from tests.gpu import report

    print(report.text(report.load(options.json)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
