"""What is told of a child process that ended."""

import asyncio
import os
import sys
from collections.abc import Sequence

from containers.engines.child import Child


def told(*lines: str, steps: Sequence[str] = ()) -> str:
    """Let a child write lines at once, then each of `steps` by itself, and fail."""
    script = (
        "import os, sys, time\n"
        f"os.write(1, {''.join(line + chr(10) for line in lines).encode()!r})\n"
        f"for step in {list(steps)!r}:\n    os.write(1, step.encode()); time.sleep(0.05)\n"
        "sys.exit(3)"
    )

    async def ask() -> str:
        return await (await Child.start([sys.executable, "-c", script], os.environ)).died()

    return asyncio.run(ask())


def test_a_line_is_whole_in_however_many_pieces_it_is_written() -> None:
    assert told(steps=("Runtime", "Error", ":", " out of mem", "ory\nbye")) == (
        "exited with 3; RuntimeError: out of memory; bye"
    )


def test_the_first_cause_stands_before_the_last_lines() -> None:
    """As vLLM tells of it: a warning that speaks of errors, a worker's own, and much behind it."""
    warning = "WARNING utils.py:255] fd limits cause `OSError: [Errno 24]`"
    cause = "(Worker pid=7) ERROR 11-21 [executor.py:953] ValueError: no kernel for 8 bits"
    last = [f"line {number}" for number in range(15)]
    assert told(warning, cause, "    ^^^^^^", *last) == "; ".join(["exited with 3", cause, *last])


def test_marks_under_a_line_of_a_traceback_are_left_out() -> None:
    assert told("  raise Exception", "  ~~~^^^^^^^", "Exception") == "exited with 3; raise Exception; Exception"
