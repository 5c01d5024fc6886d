"""Running the tools that we do not own."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import BuildError, RequirementError

TAIL_LINES = 15


def run(
    command: Sequence[str | Path], *, what: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """Run a tool to its end and return what it printed, stdout and stderr together.

    `what` names the work in errors, such as "llama-quantize Q4_K_M". Raises BuildError with the tool's last lines when
    it fails or is killed, RequirementError when it is not there. `env` replaces the environment when given.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise RequirementError(f"{what}: {words[0]} is not installed") from error
    if done.returncode != 0:
        tail = "\n".join(f"  {line}" for line in done.stdout.splitlines()[-TAIL_LINES:])
        how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"exited with {done.returncode}"
        raise BuildError(f"{what} {how}; its last lines:\n{tail}")
    return done.stdout
