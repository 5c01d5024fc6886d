"""`assay serve NAME`: what an image runs, outside an image, with this repository's records as its evidence."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from containers.gateway import settings
from containers.gateway.evidence import Evidence
from containers.gateway.server import serve as run
from pipeline import paths
from pipeline.errors import ParamsError
from pipeline.records import FILE, Selection


def serve(name: str | None, arguments: Sequence[str]) -> None:
    """Serve an artifact, the winner where none is named, until SIGTERM or Ctrl-C; `arguments` are the gateway's flags.

    ParamsError for a bad flag, and where there is no winner.
    """
    name = name or Selection.load(paths.SELECTION).winner
    if name is None:
        raise ParamsError("selection has no winner; name the artifact to serve")
    try:
        wanted = settings.read([*arguments, "--artifact", str(paths.artifact(name))])
    except ValidationError as error:
        raise ParamsError("; ".join(settings.problems(error))) from error
    run(wanted, Evidence(wanted.artifact, evidence(name)))


def evidence(name: str) -> dict[str, Path]:
    """Return the records that speak for an artifact, those that are there, by the names that an image gives them."""
    records = {
        "checkpoint": paths.CHECKPOINT / FILE,
        "corpus": paths.CORPUS / FILE,
        "reference": paths.REFERENCE / FILE,
        "quality": paths.quality(name),
        "latency": paths.latency(name),
        "tasks": paths.tasks(name),
        "selection": paths.SELECTION,
    }
    return {noun: path for noun, path in records.items() if path.exists()}
