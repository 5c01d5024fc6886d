"""A gateway in a process of its own on loopback: how figures are taken of the very server that an image runs."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from containers.gateway.settings import Settings
from pipeline import endings
from pipeline.compute import Compute
from pipeline.endings import die_with_parent
from pipeline.errors import MeasurementError, NativeCrashError

HOST = "127.0.0.1"
TAIL_LINES = 15
STOP_SECONDS = 60.0
"""More than the gateway's own limit for draining."""


class GatewayProcess:
    """A gateway that is ready, and what it tells of itself."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self.url = ""
        self.model = ""
        """Name that clients ask for."""
        self.runtime = ""
        """The engine's name and version."""
        self.context_tokens = 0
        self.load_seconds = 0.0
        """From starting the process to its first token."""

    @property
    def pid(self) -> int:
        """Process id; the engine's processes descend from it."""
        return self._process.pid

    @property
    def last_lines(self) -> str:
        """What it printed last, requests left out, for an error's message."""
        return "\n".join(f"  {line}" for line in self._tail)

    def wait_until_ready(self, began: float) -> None:
        """Wait for its port and its first token; loading has no time limit of its own, since weights may be 100 GB."""
        told: dict[str, dict[str, Any]] = {}
        while not {"listening", "engine_ready"} <= told.keys():
            event = self._events.get()
            if event is None:
                self._process.wait()
                raise self.failure(f"the gateway {endings.words(self._process.returncode)} before it was ready")
            if event["event"] == "engine_failed":
                raise self.failure(f"the gateway has an engine that does not come up: {event['why']}")
            told[event["event"]] = event
        self.load_seconds = perf_counter() - began
        self.url = f"http://{HOST}:{told['listening']['port']}"
        (model,) = json.loads(self.get("/v1/models"))["data"]
        self.model, self.runtime, self.context_tokens = model["id"], model["runtime"], model["max_model_len"]

    def get(self, route: str) -> bytes:
        """Return what a GET gives."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.url + route, timeout=60) as reply:
            return bytes(reply.read())

    def stop(self) -> None:
        """Ask it to end, as whoever runs the image does. An error unless it drains and exits with 0."""
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise self.failure(f"the gateway did not end within {STOP_SECONDS:g} s of SIGTERM") from None
        if code != 0:
            raise self.failure(f"the gateway {endings.words(code)} after SIGTERM")

    def kill(self) -> None:
        """End it at once; its engine's processes go with it."""
        self._process.kill()
        self._process.wait()
        self._reading.join()

    def failure(self, what: str, patience_seconds: float = 0.0) -> MeasurementError | NativeCrashError:
        """Return the error for what went wrong, with the last lines: NativeCrashError where they tell of an engine's.

        A client sees that its engine is gone before the gateway has told why: `patience_seconds` waits for that.
        """
        with contextlib.suppress(queue.Empty):
            self._events.get(timeout=patience_seconds)
        if self._process.poll() is not None:
            self._reading.join()
        message = f"{what}; the gateway's last lines:\n{self.last_lines}"
        return NativeCrashError(message) if endings.crashed(message) else MeasurementError(message)

    def _read(self) -> None:
        """Take its output all the time, so that it never blocks on a full pipe."""
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode(errors="replace").strip()
            event = _event(line)
            if event is None or event["event"] != "request":
                self._tail.append(line)
            if event is not None and event["event"] in ("listening", "engine_ready", "engine_failed"):
                self._events.put(event)
        self._events.put(None)


@contextmanager
def gateway(artifact: Path, *, compute: Compute, slots: int, flags: tuple[str, ...] = ()) -> Iterator[GatewayProcess]:
    """Serve an artifact's folder to this machine alone, without keys, on a free port, until the block ends.

    `flags` are more of the gateway's own. MeasurementError with its last lines when it does not come up, or does not
    end well after a block that did, NativeCrashError when it or its engine dies by a signal; after a block that raised,
    it is killed.
    """
    sizes = ("--device", compute.device, "--threads", str(compute.threads), "--slots", str(slots))
    command = [sys.executable, "-m", "containers.gateway", "--artifact", str(artifact), *sizes, *flags]
    # What sets up a container from outside is not meant for this one.
    theirs = {f"ASSAY_{name.upper()}" for name in Settings.model_fields}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIP_")}
    environment = {name: value for name, value in environment.items() if name not in theirs}
    began = perf_counter()
    process = subprocess.Popen(
        [*command, "--auth", "none", "--host", HOST, "--port", "0"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=die_with_parent(os.getpid()),
    )
    served = GatewayProcess(process)
    try:
        served.wait_until_ready(began)
        yield served
        served.stop()
    finally:
        served.kill()


def _event(line: str) -> dict[str, Any] | None:
    """Read a line of the log; None for anything else that a library printed."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None
