"""Running the tools that we do not own."""

import os
import re
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pipeline import endings
from pipeline.errors import BuildError, NativeCrashError, RequirementError, StorageError
from pipeline.progress import steps

KEPT_LINES = 200
DISK_FULL = "No space left on device"
"""As the C library words it for whoever prints it."""

Count = Callable[[str], tuple[int, int] | None]
"""Reads (done, all) out of a line that a tool prints; None for a line that does not tell."""


def count(pattern: str, total: int | None = None) -> Count:
    """Make a Count of a pattern at a line's beginning: its groups are done and all, or done alone, with `total`."""
    compiled = re.compile(pattern)

    def read(line: str) -> tuple[int, int] | None:
        match = compiled.match(line)
        return (int(match[1]), int(match[2]) if total is None else total) if match else None

    return read


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    progress: Count | None = None,
) -> str:
    """Run a tool to its end and return what it printed, stdout and stderr together. It dies with this process.

    `what` names the work in errors and on the progress bar, such as "llama-quantize Q4_K_M". `env` replaces the
    environment when given. Raises BuildError with the tool's last lines when it fails, NativeCrashError when it dies by
    a signal, StorageError when it says that the disk is full, RequirementError when it is not there.
    """
    words = [str(word) for word in command]
    lines: list[str] = []
    tail: deque[str] = deque(maxlen=KEPT_LINES)
    try:
        child = subprocess.Popen(
            words,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,  # a bar's carriage returns end lines, too
            errors="replace",
            preexec_fn=endings.die_with_parent(os.getpid()),
        )
    except FileNotFoundError as error:
        raise RequirementError(f"{what}: {words[0]} is not installed") from error
    with child, steps(what) as show:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                lines.append(line)
                if progress is not None and (at := progress(line)) is not None:
                    show(*at)
                elif line.strip():
                    tail.append(line.rstrip())
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        raise failure(what, child.returncode, tail)
    return "".join(lines)


def failure(what: str, code: int, lines: Iterable[str]) -> BuildError | StorageError:
    """Return the error for a tool that did not end well: what it was doing, how it ended, its last lines."""
    how, shown = f"{what} {endings.words(code)}", endings.last_lines(list(lines))
    message = "\n".join([f"{how}; its last lines:", *(f"  {line}" for line in shown)])
    if any(DISK_FULL in line for line in shown):
        return StorageError(f"the disk is full: {message}")
    return NativeCrashError(message) if endings.crashed(message) else BuildError(message)
