"""The command line: one subcommand a noun. The only place that prints or exits."""

import argparse
import errno
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline import paths
from pipeline.errors import AssayError, ParamsError, StorageError

if TYPE_CHECKING:
    from pipeline.params import Params

NOUNS = {
    "inputs": "note the state of this machine and of the folders that params.yaml names",
    "checkpoint": "fetch or link the checkpoint and check it",
    "corpus": "cut the texts into windows of token ids",
    "reference": "score the unquantized checkpoint",
    "answers": "let the unquantized checkpoint answer the tasks",
    "artifact": "build one artifact",
    "quality": "score one artifact",
    "tasks": "let one artifact answer the tasks",
    "latency": "time one artifact",
    "selection": "rank the artifacts and pick the winner",
}
NAMED = ("artifact", "quality", "tasks", "latency")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except AssayError as error:
        print(f"assay: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = error.filename or "while writing"
        print(f"assay: the disk is full ({where}); nothing was left half-written", file=sys.stderr)
        return StorageError.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="assay", description="Build, measure and choose artifacts of a language model."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for noun, about in NOUNS.items():
        command = commands.add_parser(noun, help=about, description=about)
        if noun in NAMED:
            command.add_argument("name", help="a key of artifacts in params.yaml")
    commands.add_parser("params", help="check params.yaml")
    commands.add_parser("ranking", help="print the ranking of the last run")
    commands.add_parser("toolchain", help="build llama.cpp and its bindings, once for this machine")
    return parser


def _run(options: argparse.Namespace) -> None:
    command: str = options.command
    if command == "toolchain":
        from pipeline import toolchains

        toolchains.install_bindings(toolchains.build_llama_cpp())
        return
    if command == "ranking":
        from pipeline.report import terminal

        terminal.print_ranking()
        return
    from pipeline import params

    loaded = params.load()
    if command == "params":
        print(f"params.yaml is valid: {len(loaded.artifacts)} artifacts")
        return
    import importlib

    stage = getattr(importlib.import_module(f"pipeline.stages.{command}"), command)
    if command not in NAMED:
        _announce(loaded, command)
        stage(loaded)
        return
    if options.name not in loaded.artifacts:
        known = ", ".join(loaded.artifacts)
        raise ParamsError(f"{options.name!r} is not a key of artifacts in params.yaml; known: {known}")
    _announce(loaded, f"{command} {options.name}")
    stage(loaded, options.name)


def _announce(params: "Params", what: str) -> None:
    """Tell which stage this is and how far the flow has come, counting the outputs that are there."""
    singles = [paths.CHECKPOINT / "assay.json", paths.CORPUS, paths.REFERENCE, paths.ANSWERS, paths.SELECTION]
    places = (paths.artifact, paths.quality, paths.tasks, paths.latency)
    each = [place(name) for place in places for name in params.artifacts]
    outputs = singles + each
    print(
        f"assay: {what} ({sum(path.exists() for path in outputs)} of {len(outputs)} outputs are there)", file=sys.stderr
    )


if __name__ == "__main__":
    sys.exit(main())
