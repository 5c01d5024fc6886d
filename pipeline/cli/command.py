"""What every part of the command line declares its subcommands with."""

import argparse
from collections.abc import Callable, Mapping
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


FILE, FOLDER = {"bash": "_shtab_compgen_files", "zsh": "_files"}, {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}
"""What shtab completes an argument with; it need not be imported for that."""


def completed(argument: argparse.Action, by: Mapping[str, str]) -> None:
    """Have shells complete an argument by files or folders."""
    argument.complete = by  # type: ignore[attr-defined]


def command(
    commands: Commands, name: str, about: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Add a subcommand that `run` carries out; return its parser, for its arguments."""
    parser = commands.add_parser(name, help=about, description=about)
    parser.set_defaults(run=run)
    return parser
