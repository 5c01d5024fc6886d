"""An artifact that fails is a row that says why, and the run goes on; its last stage, outcome, then fails.

What concerns one artifact becomes a row: a tool that fails or crashes, an artifact that comes out damaged, cannot be
loaded or is too large for this machine, an error that nobody foresaw. What concerns all of them stops the run at once:
an error in params.yaml, a full disk, a tool that is not there, the Hub.
"""

import errno
import importlib
import os
import re
import traceback
from collections.abc import Iterator

from pipeline.errors import AssayError, BuildError, CapacityError, MeasurementError
from pipeline.params import Params
from pipeline.records import Failure, Selection

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""What a disk says that takes nothing more."""

LOG_LINES, LINE_LETTERS, REASON_LETTERS = 60, 400, 240
"""At most of a log, of a line of it, and of a reason, which stands in a table."""

LAST_LINES = re.compile(r"; (its|the gateway's) last lines:$")
"""How a message goes on to its second line, which is the log's first."""

SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|KEY|CREDENTIAL", re.IGNORECASE)
"""Environment variables whose values belong in no report."""
SECRET_LETTERS = 8


def concerns_one(error: Exception) -> bool:
    """Tell whether an error is one artifact's, and the run may go on: unless ASSAY_STRICT says that it must not."""
    if os.environ.get("ASSAY_STRICT"):
        return False
    if isinstance(error, AssayError):
        return isinstance(error, BuildError | MeasurementError | CapacityError)
    return not (isinstance(error, OSError) and error.errno in FULL)


def keep(params: Params, stage: str, name: str, error: Exception) -> Failure:
    """Write the outputs of a stage that failed for an artifact: rows with the reason."""
    foreseen = isinstance(error, AssayError)
    lines = str(error).splitlines() if foreseen else traceback.format_exception_only(error)[-1].splitlines()
    log = lines[1:] if foreseen else "".join(traceback.format_exception(error)).splitlines()
    failure = Failure(
        stage=stage,
        artifact=name,
        reason=_public(LAST_LINES.sub("", lines[0]) if lines else type(error).__name__, REASON_LETTERS),
        exit_code=error.exit_code if isinstance(error, AssayError) else 1,
        log=tuple(_public(line, LINE_LETTERS) for line in log[-LOG_LINES:]),
    )
    importlib.import_module(f"pipeline.stages.{stage}").failed(params, name, failure)
    return failure


def listed(selection: Selection) -> Iterator[str]:
    """Yield a line for each row that failed: its reason, and what tries it again."""
    for standing in selection.ranking:
        if standing.failure is not None:
            yield f"  {standing.name} {standing.failure.words}\n    again: {standing.failure.again}"


def _public(line: str, letters: int) -> str:
    """Cut a line to so many letters, with the values of secret environment variables taken out."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SECRET_LETTERS:
            line = line.replace(value, f"${name}")
    return line if len(line) <= letters else f"{line[:letters]} ..."
