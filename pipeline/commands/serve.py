"""`assay serve NAME`: what an image runs, outside an image, with this repository's records as its evidence."""

from collections.abc import Sequence

from pydantic import ValidationError

from containers.gateway import settings
from containers.gateway.evidence import Evidence
from containers.gateway.server import serve as run
from pipeline import paths
from pipeline.errors import ParamsError
from pipeline.records import Selection


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
    run(wanted, Evidence(wanted.artifact, paths.evidence(name)))
