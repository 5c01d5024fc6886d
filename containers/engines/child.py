"""A child process that ends with us, and whose last words are kept for the error."""

import asyncio
import codecs
import contextlib
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from containers.engines import keeper
from pipeline import endings
from pipeline.endings import die_with_parent

KEPT_LINES = 400
KEPT_LETTERS = 2**16
"""Letters that are kept of a line that has not ended."""
CAUSE = re.compile(r"(?:^|[\])] +)[\w.]+(?:Error|Exception): ")
"""Why something failed: where a line begins, or behind what a logger puts there. Processes that start others report the
first one's failure last, and only that there was one."""
MARKS = re.compile(r"[\s^~]*")
"""A line of a traceback that only points at the one above."""

SECRETS = ("ASSAY_API_KEYS",)
"""Environment variables that an engine does not get: it knows no clients."""


class Child:
    """One process, with all that it starts. Its output is read all the time, so it never blocks on a full pipe."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: int | None = None) -> None:
        self._process = process
        self._pipe = pipe
        self._kept = pipe is not None
        self._tail: deque[str] = deque(maxlen=KEPT_LINES)
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, command: Sequence[str | Path], env: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> "Child":
        """Start a process; the kernel kills it when we die."""
        return cls(await _process(command, env, pass_fds, die_with_parent(os.getpid())))

    @classmethod
    async def start_family(cls, command: Sequence[str | Path], env: Mapping[str, str]) -> "Child":
        """Start a process that starts others, under a keeper: when we die, however it is, none of them is left."""
        theirs, ours = os.pipe()
        try:
            kept = [sys.executable, "-I", "-S", keeper.__file__, str(theirs), *command]
            return cls(await _process(kept, env, (theirs,), None), ours)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def died(self) -> str:
        """Wait for its end; return how it ended, the first error that it told of, and its last lines."""
        code = await self._process.wait()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reading), 1)
        if self._kept and code > 128:  # as the keeper tells of it
            code = 128 - code
        kept = list(self._tail)
        if self._kept and code > 128:  # as the keeper tells of it
            code = 128 - code
        shown = endings.last_lines(kept)
        causes = [line for line in kept[: -endings.TAIL_LINES] if CAUSE.search(line) and line not in shown]
        return "; ".join([endings.words(code), *causes[:1], *shown])

    async def kill(self) -> None:
        """End it at once."""
        if self._pipe is not None:
            os.close(self._pipe)  # the keeper's sign
            self._pipe = None
        else:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
        self._reading.cancel()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        decoder, begun = codecs.getincrementaldecoder("utf-8")("replace"), ""
        while chunk := await self._process.stdout.read(2**16):
            *lines, begun = re.split(r"[\r\n]", begun + decoder.decode(chunk))
            begun = begun[-KEPT_LETTERS:]
            self._keep(*lines)
        self._keep(begun)

    def _keep(self, *lines: str) -> None:
        self._tail.extend(line.strip() for line in lines if not MARKS.fullmatch(line))


async def _process(
    command: Sequence[str | Path], env: Mapping[str, str], fds: Sequence[int], first: Callable[[], None] | None
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *map(str, command),
        env={name: value for name, value in env.items() if name not in SECRETS},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        pass_fds=fds,
        preexec_fn=first,
        start_new_session=True,  # a terminal's Ctrl-C is for the gateway, which lets the engine finish first
    )
