"""A stage's process that really dies: what is told, what is passed on, what is left alone."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import MeasurementError, NativeCrashError

PROGRAM = """
import ctypes, os, signal, sys, time
from pathlib import Path
from pipeline import __main__ as program
from pipeline.cli import stages
from pipeline import activity
from pipeline.errors import MeasurementError

def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def run(noun, *names):
    activity.note("scoring it")
    print("\\x1b[31mthe library speaks\\x1b[0m", file=sys.stderr)
    print("at work", os.getpid(), flush=True)
    WORK

stages._run = run
sys.argv = ["assay", "corpus"]
sys.exit(program.main())
"""


def command(work: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM.replace("WORK", work.replace("\n", "\n    "))]


def run(work: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(work), capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        ("ctypes.string_at(0)", r"SIGSEGV \(native code touched memory that is not its own\)"),
        ("os.kill(os.getpid(), signal.SIGILL)", r"SIGILL \(it was compiled for another processor"),
        ("os.abort()", r"SIGABRT \(a library gave up"),
        ("os.kill(os.getpid(), signal.SIGBUS)", r"SIGBUS \(.*the disk or /dev/shm is full"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"SIGKILL \(.*want of memory"),
    ],
)
def test_a_death_by_signal_is_an_error_with_everything_there_is_to_know(work: str, words: str) -> None:
    done = run(work)
    assert done.returncode == NativeCrashError.exit_code
    told = done.stderr[done.stderr.index("assay: ") :]
    assert re.match(rf"assay: corpus was killed by {words}.* while scoring it\n", told), told
    assert "its last lines:\n  the library speaks\n" in told, "as printed, but for the colours"
    if "SIGKILL" not in words:
        assert re.search(r'File "<string>", line \d+ in run', told), "Python's stack"
    assert re.search(r"it held [\d.]+ GiB at most; this .* [\d.]+ GiB", told)
    assert "What to try: " in told


def test_what_the_stage_raises_and_returns_is_as_without_a_supervisor() -> None:
    assert (run("pass").returncode, run("pass").stdout.split()[:2]) == (0, ["at", "work"])
    failed = run("raise MeasurementError('no figures')")
    assert (failed.returncode, failed.stderr.splitlines()[-1]) == (MeasurementError.exit_code, "assay: no figures")
    unforeseen = run("raise KeyError('unforeseen')")
    assert (unforeseen.returncode, unforeseen.stderr.splitlines()[-1]) == (1, "KeyError: 'unforeseen'")


def test_a_crash_after_the_work_is_done_changes_nothing() -> None:
    done = run("import atexit; atexit.register(lambda: ctypes.string_at(0))")
    assert done.returncode == 0
    assert "corpus is done; while unloading libraries it was killed by SIGSEGV" in done.stderr


def test_memory_is_counted_from_nothing() -> None:
    """The supervisor's own is no part of what a stage's record holds."""
    work = "from evals import memory; print(memory.peak_rss_bytes(), memory.peak_child_rss_bytes())"
    _, figures = run(work).stdout.splitlines()
    own, children = map(int, figures.split())
    assert 2**22 < own < 2**27
    assert children == 0


def as_in_a_shell() -> None:
    """Undo what nohup, and a shell without job control, leave to what they start in the background: signals ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(work: str) -> tuple["subprocess.Popen[str]", int]:
    """Start it in a process group of its own; return it with its worker's id."""
    process = subprocess.Popen(
        command(work), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=as_in_a_shell,
    )  # fmt: skip
    assert process.stdout is not None
    return process, int(process.stdout.readline().split()[-1])


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def within(seconds: float, true: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -15), (signal.SIGINT, 130), (signal.SIGHUP, -1)])
def test_a_signal_to_the_supervisor_reaches_the_stage_and_ends_both_as_it_would_have(
    number: signal.Signals, code: int
) -> None:
    process, worker = started("time.sleep(60)")
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert process.returncode == code
    assert "killed" not in told, "nobody crashed"
    assert gone(worker)


def test_a_supervisor_that_is_killed_takes_the_stage_along() -> None:
    process, worker = started("time.sleep(60)")
    process.kill()
    process.communicate()
    assert within(10, lambda: gone(worker))


TOOL = """
import threading
from pipeline import processes
threading.Thread(target=lambda: (time.sleep(0.2), print("tool", *children(), flush=True)), daemon=True).start()
processes.run(["sleep", "60"], what="a tool")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_and_its_tool_end_with_the_dvc_that_started_them(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "dvc.py"
    script.write_text(
        f"import subprocess, os\nsubprocess.run({command(TOOL)!r}, env={{**os.environ, 'DVC_STAGE': 'x'}})\n"
    )
    dvc = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, preexec_fn=as_in_a_shell)
    assert dvc.stdout is not None
    worker, tool = (int(dvc.stdout.readline().split()[-1]) for _ in range(2))
    assert not gone(tool)
    dvc.send_signal(number)
    dvc.wait(timeout=20)
    assert within(10, lambda: gone(worker) and gone(tool))


def test_ctrl_c_comes_once_and_bars_are_drawn_on_a_terminal() -> None:
    """On a terminal both get the signal; what it interrupts takes a moment to clean up, and must be left to."""
    work = (
        "try:\n    print(os.isatty(2), os.get_terminal_size(2).columns, file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.5); print('cleaned up', file=sys.stderr); raise"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        as_in_a_shell()
        os.execv(sys.executable, command(work))
    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 123, 0, 0))
    seen = ""

    def read(until: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while until not in seen and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    seen += os.read(terminal, 4096).decode()
                except OSError:
                    break
        assert until in seen, seen

    read("True 123\r\n")
    os.write(terminal, b"\x03")
    read("cleaned up\r\n")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
