"""The image of the engine that the winner was measured with: found where it was built before, else built now."""

import os
import shutil
from pathlib import Path

from pipeline import outputs, paths
from pipeline.errors import RequirementError
from pipeline.images import bases, builders, lookup
from pipeline.images import engine as images
from pipeline.params import Params
from pipeline.records import FILE, Engine, Latency, Selection


def engine(params: Params) -> None:
    """Fill engine/ with the layout and its record.

    Without a builder or a base image the record says what would help, and every later stage passes that on; with
    ASSAY_STRICT, or --strict, it is an error.
    """
    winner = Selection.load(paths.SELECTION).winner
    assert winner is not None, "selection fails where there is none"
    served = Latency.load(paths.latency(winner)).served
    assert served is not None, "an unavailable artifact wins nothing"
    name = served.engine
    try:
        builder = builders.find()  # first, because making a base takes a minute
        found = bases.of_engine(name, params.image.base, lookup.digest, builder.python)
        built = images.build(name, builder, found)
    except RequirementError as error:
        if os.environ.get("ASSAY_STRICT"):
            raise
        with outputs.folder(paths.ENGINE) as out:
            Engine(name=name, unavailable=str(error)).save(out / FILE)
        return
    with outputs.folder(paths.ENGINE) as out:
        shutil.copytree(built, out, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    """Share the cache's bytes where both lie on one file system; nothing writes to either."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
