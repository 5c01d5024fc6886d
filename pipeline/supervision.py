"""A process that does nothing but watch another one, which does the work, so that a crash in native code is an error.

Python cannot catch a fault in a library that it calls: the process is gone, with a number for an exit code. So the
command forks before it has loaded anything heavy; the child goes on, the parent passes on signals and what the child
prints on stderr, and when the child dies by a signal, the parent tells what it was doing, its last lines and its stack.
"""

import ctypes
import faulthandler
import mmap
import os
import re
import select
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import activity, endings
from pipeline.errors import NativeCrashError
from pipeline.relay import Relay

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WATCHED = {*PASSED_ON, signal.SIGCHLD, signal.SIGWINCH}

SFD_CLOEXEC = os.O_CLOEXEC
SIGNALFD_BYTES = 128
"""Size of a struct signalfd_siginfo, which begins with the signal's number, an errno and the code of its sender."""
SI_USER = 0
"""A process sent it, as codes below zero tell as well. A terminal's Ctrl-C has a higher one: it has reached the child
by itself, and must not come twice."""

DVC_STAGE = "DVC_STAGE"
"""DVC sets this variable for every command of a stage."""

ENDED = "unloading libraries"
"""Noted when all is done: what crashes from then on has written everything."""


def supervise(what: str) -> None:
    """Fork; return in the child alone. The parent ends as the child does, or raises NativeCrashError.

    A stage ends with the `dvc repro` that started it, however that ended; one that a shell started does not.

    `what` names the work, such as "quality gguf-q8_0".
    """
    if DVC_STAGE in os.environ:
        endings.end_with_parent()
    board, stack, starved = activity.share(), os.memfd_create("stack"), _killed_for_memory()
    sys.stdout.flush()
    sys.stderr.flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    signals, relay = _signalfd(), Relay()
    be_ours = endings.die_with_parent(os.getpid())
    child = os.fork()
    if child == 0:
        be_ours()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(signals)
        relay.become_stderr()
        faulthandler.enable(stack)
        activity.note("starting")
        return
    try:
        code, peak_bytes = _watch(child, signals, relay)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if code < 0 and activity.read(board) == ENDED:
        sys.stderr.write(f"assay: {what} is done; while unloading libraries it {endings.words(code)}\n")
        code = 0
    if code >= 0:
        sys.exit(code)
    if -code in PASSED_ON:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise NativeCrashError(_told(what, code, board, stack, relay.lines, peak_bytes, _killed_for_memory() > starved))


def done() -> None:
    """Note that the work is done and all that it writes is written."""
    activity.note(ENDED)


def _signalfd() -> int:
    """Return a file that gives signals, the blocked ones, together with who sent them; Python has no call for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    wanted = ctypes.create_string_buffer(SIGNALFD_BYTES)  # a sigset_t is no larger
    libc.sigemptyset(wanted)
    for number in WATCHED:
        libc.sigaddset(wanted, int(number))
    file = int(libc.signalfd(-1, wanted, SFD_CLOEXEC))
    if file < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return file


def _watch(child: int, signals: int, relay: Relay) -> tuple[int, int]:
    """Pass on signals and stderr until the child ends; return its exit code and its largest resident set in bytes."""
    while True:
        ready = select.select([signals, relay.fileno()], [], [])[0]
        if relay.fileno() in ready:
            relay.pass_on()
        if signals not in ready:
            continue
        number, _, sender = struct.unpack_from("=Iii", os.read(signals, SIGNALFD_BYTES))
        if number == signal.SIGCHLD:
            ended, status, usage = os.wait4(child, os.WNOHANG)
            if ended:
                relay.drain()
                return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        elif number == signal.SIGWINCH:
            relay.resize()
        elif sender <= SI_USER:
            os.kill(child, number)


def _told(
    what: str, code: int, board: mmap.mmap, stack: int, lines: Sequence[str], peak_bytes: int, starved: bool
) -> str:
    """Say what died of what and doing what, its last lines, its stack, its memory, and what to try."""
    parts = [f"{what} {endings.words(code)} while {activity.read(board)}"]
    if shown := endings.last_lines(lines):
        parts += ["its last lines:", *(f"  {line}" for line in shown)]
    os.lseek(stack, 0, os.SEEK_SET)
    with open(stack, encoding="utf-8", errors="replace") as written:
        if frames := endings.stack(written.read().splitlines()):
            parts += ["where it was:", *(f"  {line}" for line in frames)]
    parts.append(f"it held {_gib(peak_bytes)} at most; {_memory()}")
    if starved:
        parts.append("the kernel killed a process for want of memory meanwhile")
    elif -code == signal.SIGKILL:
        parts.append(
            "the kernel tells of no kill for want of memory: a person, a job's limit or a daemon may have done it"
        )
    return "\n".join([*parts, f"What to try: {endings.advice(-code)}"])


def _killed_for_memory() -> int:
    """Count the processes that the kernel has killed for want of memory since it started."""
    match = re.search(r"^oom_kill (\d+)", _text("/proc/vmstat"), re.MULTILINE)
    return int(match[1]) if match else 0


def _memory() -> str:
    """Say how much memory there is: a container's limit where it has one, else the machine's."""
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit():
        return f"this container may hold {_gib(int(limit))}"
    sizes = dict(re.findall(r"^(MemTotal|MemAvailable): +(\d+) kB", _text("/proc/meminfo"), re.MULTILINE))
    total, free = (_gib(int(sizes.get(name, 0)) * 1024) for name in ("MemTotal", "MemAvailable"))
    return f"this machine has {total}, of which {free} are free now"


def _text(path: str) -> str:
    file = Path(path)
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
