"""How processes end: the one reading of exit codes and signals, and what makes a process end with its parent."""

import ctypes
import os
import re
import signal
from collections.abc import Callable, Sequence
from typing import Final

MEANINGS: Final = {
    "SIGSEGV": "native code touched memory that is not its own",
    "SIGILL": "it was compiled for another processor: this one lacks an instruction",
    "SIGFPE": "native code divided by zero",
    "SIGTRAP": "native code ran into a trap of its own",
    "SIGABRT": "a library gave up, most often saying why in its last line",
    "SIGBUS": "memory could not be filled: the disk or /dev/shm is full, or a mapped file was cut short",
    "SIGKILL": "the system ended it, most often for want of memory; `dmesg` tells",
    "SIGSYS": "it made a system call that its sandbox forbids",
    "SIGXCPU": "it used up the processor time that `ulimit -t` allows",
    "SIGXFSZ": "it wrote a larger file than `ulimit -f` allows",
    "SIGTERM": "somebody asked it to end",
    "SIGINT": "somebody interrupted it",
    "SIGHUP": "its terminal went away",
}
"""What a signal usually tells of the process that died by it."""

CODE = {
    "SIGILL": "Build what it runs on this very machine: delete ~/.cache/assay/toolchains and run `assay toolchain`, or "
    "install a wheel that was made for this processor.",
    "SIGABRT": "The library's last lines say what it missed; they are worth a search in its issues.",
    "SIGBUS": "Free room on the disk and in /dev/shm (`df -h`), then try again.",
    "SIGKILL": "End other programs, or lower what it needs: `assay plan` says what each artifact takes.",
}
ELSE = (
    "Try again with `threads: 1` in params.yaml, which tells whether threads have to do with it; a library's newer "
    "version may have it mended, and its makers can use the stack."
)

TAIL_LINES = 15
STACK_LINES = 25
"""Lines that are kept of a stack as faulthandler writes it, the fault first: what lies deeper is the command line's."""
FATAL = "Fatal Python error: "

CRASHED = re.compile(r"\b(?:was killed by|tells of) SIG(?!TERM|INT|HUP)[A-Z]+")

PR_SET_PDEATHSIG = 1
"""<linux/prctl.h>"""


def name(number: int) -> str:
    """Name a signal, such as SIGSEGV; real-time signals have numbers only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def words(code: int) -> str:
    """Say how a process ended: `code` is below zero for a signal, as Python has it, else an exit code.

    A shell, a container and whatever else runs a process for another tell of a signal as 128 and its number.
    """
    if code < 0:
        return f"was killed by {_meant(-code)}"
    if code - 128 in {number for number in signal.Signals if number.name in MEANINGS}:
        return f"exited with {code}, which tells of {_meant(code - 128)}"
    return f"exited with {code}"


def crashed(text: str) -> bool:
    """Tell whether a text tells of a death by signal in the words of `words`, one that nobody asked for."""
    return CRASHED.search(text) is not None


def advice(number: int) -> str:
    """Say what to try after a death by a signal."""
    return CODE.get(name(number), ELSE)


def last_lines(lines: Sequence[str]) -> list[str]:
    """Return what is worth showing of a process's output: its last lines, and Python's stack where it wrote one."""
    at = next((number for number, line in enumerate(lines) if FATAL in line), len(lines))
    return [*lines[:at][-TAIL_LINES:], *stack(lines[at:])]


def stack(lines: Sequence[str]) -> list[str]:
    """Return the top of what faulthandler wrote: the C stack, where it has one, and the faulting thread's in Python."""
    written = [line for line in lines if line.strip() and not line.startswith("Extension modules:")]
    return written[:STACK_LINES]


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when the one that started it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def die_with_parent(parent: int) -> Callable[[], None]:
    """Return what a new process must do first so that the kernel kills it when `parent` dies."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we could ask
            os._exit(1)

    return ask


def _meant(number: int) -> str:
    meaning = MEANINGS.get(name(number))
    return f"{name(number)} ({meaning})" if meaning else name(number)
