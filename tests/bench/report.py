"""How long the report of many artifacts takes, and how large it is."""

import os
import time
from pathlib import Path

from pipeline import paths
from pipeline.report import write
from tests.bench.workspace import Row, row
from tests.support.reports import finished

ARTIFACTS = 50


def report(scratch: Path) -> list[Row]:
    """Write every form of the report of 50 artifacts, each with 24 requests of one stream and 96 of four."""
    before = Path.cwd()
    os.chdir(scratch)
    try:
        selection, run = finished(ARTIFACTS)
        start = time.perf_counter()
        write.write(selection, run)
        seconds = time.perf_counter() - start
        size = paths.PAGE.stat().st_size
    finally:
        os.chdir(before)
    what = f"report of {ARTIFACTS} artifacts"
    return [row(f"{what}, s", seconds, at_most=10), row(f"{what}, MB of index.html", size / 1e6, at_most=3)]
