"""Runs `run(job)` of a script: `python isolated.py SCRIPT JOB RESULT`, in the interpreter of an isolated environment.

Nothing of the repository can be imported there, and its Python may be an older one, so this file needs neither.
"""

import json
import os
import runpy
import sys
import threading


def main(script: str, job: str, result: str) -> None:
    """Read the job, run the script on it, write what it returns."""
    sys.path.pop(0)  # this file's folder
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run = runpy.run_path(script)["run"]
    with open(job, encoding="utf-8") as stream:  # noqa: PTH123 (small enough without pathlib)
        given = json.load(stream)
    value = run(given)
    with open(result, "w", encoding="utf-8") as stream:  # noqa: PTH123
        json.dump(value, stream)


def _end_with_parent() -> None:
    """Stop when the parent is gone, however it went: nobody would want what is written from then on."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
