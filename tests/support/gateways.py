"""A gateway on loopback for tests: in a thread over a fake engine, or as a process of its own.

`python -m tests.support.gateways FOLDER --port 0 ...` serves a fake engine with the gateway's own flags.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import uvicorn

from containers.gateway.__main__ import main
from containers.gateway.app import build
from containers.gateway.evidence import Evidence
from containers.gateway.server import run
from containers.gateway.settings import Settings
from pipeline.records import FILE, Artifact
from tests.support.fakes import FakeEngine

KEY = "test-key-0123456789"
HEADERS = {"Authorization": f"Bearer {KEY}"}
ROOT = Path(__file__).parents[2]


class Served:
    """A running gateway, and clients of it."""

    def __init__(
        self, address: str, engine: FakeEngine | None = None, events: list[dict[str, Any]] | None = None
    ) -> None:
        self.address = address
        self.engine = engine or FakeEngine()
        self.events = events if events is not None else []
        """What it logged."""
        self.http = httpx2.Client(base_url=address, headers=HEADERS, timeout=30, verify=False)
        self.openai = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=30)

    def ready(self) -> bool:
        return self.http.get("/health/ready").status_code == 200

    def wait(self, what: Any, seconds: float = 20) -> None:
        """Wait until something is true."""
        until = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < until, "it did not come true"
            time.sleep(0.01)


def artifact(folder: Path) -> Path:
    """Write the record of an artifact without files, which is all that a fake engine needs."""
    recipe: dict[str, Any] = {"backend": "gguf", "quantization": "F16"}
    Artifact(name="demo", recipe=recipe, checkpoint="c", calibration="e", digest="a" * 64).save(folder / FILE)
    return folder


@contextmanager
def gateway(folder: Path, engine: FakeEngine, *, ready: bool = True, **changes: Any) -> Iterator[Served]:
    """Run a gateway over `engine` in a thread; `changes` are Settings."""
    events: list[dict[str, Any]] = []
    values = {"artifact": artifact(folder), "host": "127.0.0.1", "api_keys": f"tests:{KEY}", "slots": engine.slots}
    wanted = Settings(**{**values, **changes})
    app = build(
        wanted,
        engine,
        Evidence.of_folder(wanted.artifact, wanted.evidence),
        lambda event, **f: events.append({"event": event, **f}),
    )
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    served = Served(f"http://127.0.0.1:{listening.getsockname()[1]}", engine, events)
    try:
        if ready:
            served.wait(served.ready)
        yield served
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def process(
    command: Sequence[str], *, scheme: str = "http", **environment: str
) -> Iterator[tuple["subprocess.Popen[str]", Served]]:
    """Run a gateway's command and wait until it listens; its log is read all the time into `Served.events`."""
    env = {**os.environ, "ASSAY_API_KEYS": f"tests:{KEY}", "PYTHONPATH": str(ROOT), **environment}
    with subprocess.Popen([sys.executable, *command], env=env, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        events: list[dict[str, Any]] = []
        lines = iter(child.stdout)
        reading = threading.Thread(target=lambda: events.extend(map(json.loads, lines)), daemon=True)
        try:
            events.append(json.loads(next(lines)))
            reading.start()
            yield child, Served(f"{scheme}://127.0.0.1:{events[0]['port']}", events=events)
        finally:
            child.kill()
            if reading.is_alive():
                reading.join(10)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], lambda wanted, evidence: run(wanted, FakeEngine(delay_seconds=0.05), evidence)))
