"""Running the tools that we do not own."""

import re
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.errors import BuildError, RequirementError
from pipeline.progress import steps

TAIL_LINES = 15

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
    """Run a tool to its end and return what it printed, stdout and stderr together.

    `what` names the work in errors and on the progress bar, such as "llama-quantize Q4_K_M". `env` replaces the
    environment when given. Raises BuildError with the tool's last lines when it fails or is killed, RequirementError
    when it is not there.
    """
    words = [str(word) for word in command]
    lines: list[str] = []
    tail: deque[str] = deque(maxlen=TAIL_LINES)
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
                    tail.append(f"  {line.rstrip()}")
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        how = f"was killed by signal {-child.returncode}" if child.returncode < 0 else f"exited with {child.returncode}"
        raise BuildError(f"{what} {how}; its last lines:\n" + "\n".join(tail))
    return "".join(lines)
