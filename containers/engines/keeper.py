"""A process between the gateway and a server of many processes, so that none of them outlives the gateway.

`python keeper.py FD COMMAND...`: FD is the reading end of a pipe that the gateway holds open. The kernel can kill a
child when its parent dies, but not that child's own children: those would keep the GPU's memory. It imports nothing of
ours, because it starts in a few milliseconds then.
"""

import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Run the command; end its whole process group when the pipe closes, or when the command itself has ended."""
    pipe, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the gateway's affair, and the command's
    process = subprocess.Popen(command, restore_signals=True, preexec_fn=_default_signals)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    code = process.wait()
    return code if code >= 0 else 128 - code


def _default_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_with(pipe: int) -> None:
    os.read(pipe, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
