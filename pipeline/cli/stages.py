"""The stages of dvc.yaml."""

import argparse
import importlib
import os
import sys
import traceback
from typing import TYPE_CHECKING

from pipeline import paths, supervision
from pipeline.cli.command import Commands, command
from pipeline.errors import AssayError, ParamsError

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
    "engine": "build the image that the winner runs on, or find it",
    "image": "put the winner, the gateway and the evidence into an image",
    "verification": "start the image and hold it against what was measured",
    "outcome": "fail where an artifact failed, after everything else",
}
NAMED = ("artifact", "quality", "tasks", "latency")
STRICT = ("inputs", *NAMED, "engine", "image")


def add(commands: Commands) -> None:
    """Add a subcommand for each stage."""
    for noun, about in NOUNS.items():
        parser = command(commands, noun, about, _stage)
        if noun in NAMED:
            parser.add_argument("name", help="a key of artifacts in params.yaml")
        if noun in STRICT:
            about = "fail for what cannot be done, instead of noting why and going on; ASSAY_STRICT=1 says the same"
            parser.add_argument("--strict", action="store_true", help=about)


def _stage(options: argparse.Namespace) -> None:
    """Run one stage, supervised; what fails for one artifact alone becomes a row, unless it is to stop the run."""
    if getattr(options, "strict", False):
        os.environ["ASSAY_STRICT"] = "1"
    noun: str = options.command
    names = (options.name,) if noun in NAMED else ()
    try:
        if options.supervised:
            supervision.supervise(" ".join((noun, *names)))
        _run(noun, *names)
    except Exception as error:
        if not names:
            raise
        _keep(noun, *names, error)
    supervision.done()


def _keep(noun: str, name: str, error: Exception) -> None:
    """Make a row of what failed for one artifact, and say so; any other error is raised again."""
    from pipeline import params
    from pipeline.stages import failure

    if not failure.concerns_one(error):
        raise error
    again = failure.keep(params.load(), noun, name, error).again
    told = f"assay: {error}" if isinstance(error, AssayError) else "".join(traceback.format_exception(error)).rstrip()
    print(
        f"{told}\nassay: {name} is a row that says so now, and the run goes on; to try again: {again}", file=sys.stderr
    )


def _run(noun: str, *names: str) -> None:
    """Do a stage's work."""
    from pipeline import params

    loaded = params.load()
    if unknown := [name for name in names if name not in loaded.artifacts]:
        known = ", ".join(loaded.artifacts)
        raise ParamsError(f"{unknown[0]!r} is not a key of artifacts in params.yaml; known: {known}")
    _announce(loaded, " ".join((noun, *names)))
    getattr(importlib.import_module(f"pipeline.stages.{noun}"), noun)(loaded, *names)


def _announce(params: "Params", what: str) -> None:
    """Tell which stage this is and how far the flow has come, counting the outputs that are there."""
    singles = [paths.CHECKPOINT / "assay.json", paths.CORPUS, paths.REFERENCE, paths.ANSWERS, paths.SELECTION]
    singles += [paths.ENGINE, paths.IMAGE, paths.VERIFICATION]
    places = (paths.artifact, paths.quality, paths.tasks, paths.latency)
    outputs = singles + [place(name) for place in places for name in params.artifacts]
    there = sum(path.exists() for path in outputs)
    print(f"assay: {what} ({there} of {len(outputs)} outputs are there)", file=sys.stderr)
