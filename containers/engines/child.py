"""A child process that ends with us, and whose last words are kept for the error."""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

TAIL_LINES = 15

SECRETS = ("ASSAY_API_KEYS",)
"""Of the environment: an engine knows no clients."""

PR_SET_PDEATHSIG = 1
"""<linux/prctl.h>"""


class Child:
    """One process. Its output is read all the time, so it never blocks on a full pipe."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, command: Sequence[str | Path], env: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> "Child":
        """Start a process; the kernel kills it when we die."""
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            env={name: value for name, value in env.items() if name not in SECRETS},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=pass_fds,
            preexec_fn=die_with_parent(os.getpid()),
            start_new_session=True,  # a terminal's Ctrl-C is for the gateway, which lets the engine finish first
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def died(self) -> str:
        """Wait for its end; return how it ended and its last lines."""
        code = await self._process.wait()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reading), 1)
        how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        return "; ".join([how, *self._tail])

    async def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._reading.cancel()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(2**16):
            self._tail.extend(line.strip() for line in chunk.decode(errors="replace").splitlines() if line.strip())


def die_with_parent(parent: int) -> Callable[[], None]:
    """Return what a new process must do first so that the kernel kills it when `parent` dies."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we could ask
            os._exit(1)

    return ask
