"""The end of a run: an error where an artifact failed, now that everything else is done.

It has no outputs, so that DVC runs it again for as long as it fails, and not once it has passed.
"""

from pipeline import paths
from pipeline.errors import FailedRowsError
from pipeline.params import Params
from pipeline.records import Selection
from pipeline.stages import failure


def outcome(_: Params) -> None:
    """Raise FailedRowsError, with what tries each failed row again; do nothing where none failed."""
    selection = Selection.load(paths.SELECTION)
    if failed := list(failure.listed(selection)):
        first = f"{len(failed)} of {len(selection.ranking)} artifacts failed and were passed over; all else is done:"
        last = f"Afterwards `dvc repro` does what depends on it. {paths.PAGE} has the logs"
        raise FailedRowsError("\n".join([first, *failed, last]))
