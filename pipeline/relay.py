"""The stderr of another process, passed on to our own and remembered."""

import fcntl
import os
import re
import select
import sys
import termios
import tty
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

KEPT_LINES = 200
KEPT_LETTERS = 2**16
"""Letters that are kept of a line that has not ended."""
BAR = re.compile(r"\d+%\|")
"""In a progress bar."""
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What colours a terminal's text or moves its cursor."""


class Relay:
    """A pipe for the other process's stderr; where ours is a terminal, a terminal of the same size.

    So progress bars are drawn there as they would be here.
    """

    def __init__(self) -> None:
        self._kept: deque[str] = deque(maxlen=KEPT_LINES)
        self._begun = ""
        self._terminal = sys.stderr.isatty()
        if self._terminal:
            self._ours, self._theirs = os.openpty()
            tty.setraw(self._theirs)  # our own terminal makes of line ends what it wants
            self.resize()
        else:
            self._ours, self._theirs = os.pipe()

    def fileno(self) -> int:
        """Return the file that it comes from."""
        return self._ours

    @property
    def lines(self) -> Sequence[str]:
        """What was printed last, without progress bars."""
        return list(self._kept)

    def become_stderr(self) -> None:
        """In the other process: print here from now on."""
        os.dup2(self._theirs, 2)
        os.close(self._theirs)
        os.close(self._ours)

    def resize(self) -> None:
        """Take over the size of our own terminal."""
        if self._terminal:
            fcntl.ioctl(self._ours, termios.TIOCSWINSZ, fcntl.ioctl(2, termios.TIOCGWINSZ, bytes(8)))

    def pass_on(self) -> None:
        """Pass on what has come. It has no end, since the other process's end is open here, too."""
        rest = data = os.read(self._ours, 2**16)
        with suppress(OSError):  # nobody reads ours: the work is worth finishing all the same
            while rest:
                rest = rest[os.write(2, rest) :]
        *lines, self._begun = re.split(r"[\r\n]", self._begun + data.decode(errors="replace"))
        self._begun = self._begun[-KEPT_LETTERS:]
        self._keep(*lines)

    def drain(self) -> None:
        """Pass on what is left, without waiting for others that may print here, too."""
        while select.select([self._ours], [], [], 0)[0]:
            self.pass_on()
        self._keep(self._begun)
        self._begun = ""

    def _keep(self, *lines: str) -> None:
        plain = (ESCAPE.sub("", line).rstrip() for line in lines)
        self._kept.extend(line for line in plain if line and not BAR.search(line))
