"""A project: making it, its settings, and what in it will run."""

import argparse
from pathlib import Path

from pipeline.cli.command import FOLDER, Commands, command, completed


def add(commands: Commands) -> None:
    """Add init, upgrade, profile, params and why."""
    about = "make a project: a folder with params.yaml and dvc.yaml for one checkpoint, in a Git and DVC repository"
    parser = command(commands, "init", about, _init)
    completed(parser.add_argument("folder", type=Path, metavar="FOLDER"), FOLDER)
    about = "hf://org/name, or a folder"
    completed(parser.add_argument("--checkpoint", required=True, metavar="SOURCE", help=about), FOLDER)
    parser.add_argument("--revision", help="branch, tag or commit of an hf:// checkpoint")
    about = "bring this folder's dvc.yaml and pins to the installed version, and say what will run again"
    command(commands, "upgrade", about, _upgrade)
    about = "merge a profile into params.yaml, as `nvidia` for what GPUs add"
    command(commands, "profile", about, _profile).add_argument("name")
    command(commands, "params", "check params.yaml", _params)
    about = "say why `dvc repro` will run a stage: which inputs, code, tools or settings are not those of its last run"
    parser = command(commands, "why", about, _why)
    parser.add_argument("stage", nargs="?", help="such as quality@gguf-q8_0, with what it needs; default: all")


def _init(options: argparse.Namespace) -> None:
    """Run init."""
    from pipeline.commands.project import init

    told = init(options.folder, options.checkpoint, options.revision)
    print(f"{options.folder} is a project for {options.checkpoint}; next:", *(f"  {line}" for line in told), sep="\n")


def _upgrade(_: argparse.Namespace) -> None:
    """Run upgrade."""
    from pipeline.commands import why
    from pipeline.commands.project import upgrade

    changed = upgrade()
    print(f"replaced: {', '.join(changed)}" if changed else "everything is of this version already")
    print(*why.text(None), sep="\n")


def _profile(options: argparse.Namespace) -> None:
    """Run profile."""
    from pipeline.commands.profile import profile

    changed = profile(options.name)
    print(*(f"params.yaml: {key}" for key in changed), sep="\n") if changed else print("params.yaml has all of it")


def _params(_: argparse.Namespace) -> None:
    """Run params."""
    from pipeline import params

    print(f"params.yaml is valid: {len(params.load().artifacts)} artifacts")


def _why(options: argparse.Namespace) -> None:
    """Run why."""
    from pipeline.commands.why import text

    print(*text(options.stage), sep="\n")
