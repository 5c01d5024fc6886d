"""A process between the gateway and a server of many processes, so that none of them outlives the gateway.

`python keeper.py FD COMMAND...`: FD is the reading end of a pipe that the gateway holds open. The kernel can kill a
child when its parent dies, but not that child's own children: those would keep the GPU's memory. It imports nothing of
ours, because it starts in a few milliseconds then.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Run the command in a process group of its own, and kill the group when the pipe closes or the command has ended.

    Returns its exit code as a shell would.
    """
    pipe, command = int(sys.argv[1]), sys.argv[2:]
    process = subprocess.Popen(command, process_group=0, stdin=pipe)  # never written to, but its end can be seen
    for number in (signal.SIGTERM, signal.SIGINT):  # the gateway's affair, and the command's
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(pipe, process.pid), daemon=True).start()
    code = process.wait()
    _kill(process.pid)
    return code if code >= 0 else 128 - code


def _end_with(pipe: int, group: int) -> None:
    os.read(pipe, 1)
    _kill(group)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
