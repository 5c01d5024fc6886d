"""Conversations through llama-server, which is what will serve the file.

Nothing lighter does it: chat templates are not in llama.cpp's C interface, and the server has its own template engine,
takes BOS off what a template wrote when the tokenizer adds one, and fills in for roles that a template lacks.
"""

import functools
import http.client
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline import endings
from pipeline.backends.contract import Render
from pipeline.errors import BuildError, MeasurementError, NativeCrashError
from pipeline.records import Message
from pipeline.toolchains import llama_cpp

START_SECONDS = 300
"""Weights stay unread on the disk, but for the types that are unpacked on loading."""
REPLY_SECONDS = 60
TAIL_LINES = 5

OPTIONS = (
    *("--jinja", "--no-ui", "--offline", "--no-slots", "--no-warmup", "--no-repack"),
    *("--ctx-size", "256", "--parallel", "1", "--threads", "1", "--cache-ram", "0", "--fit", "off", "-ngl", "0"),
)
"""Templates as when serving; the rest only keeps loading cheap."""


@contextmanager
def renderer(path: Path) -> Iterator[Render]:
    """Give conversation -> ids; the server starts on first use and is always stopped."""
    with ExitStack() as stack:

        @functools.cache
        def address() -> Path:
            return stack.enter_context(_server(path))

        def render(messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
            conversation = [message.model_dump() for message in messages]
            body = {"messages": conversation, "add_generation_prompt": add_generation_prompt}
            prompt = _post(address(), "/apply-template", body)["prompt"]
            # As for a chat request: special tokens are recognised, BOS is added where the file says so.
            body = {"content": prompt, "add_special": True, "parse_special": True}
            return [int(token) for token in _post(address(), "/tokenize", body)["tokens"]]

        yield render


@contextmanager
def _server(path: Path) -> Iterator[Path]:
    """Run a server on a socket of its own; MeasurementError when it does not take the file, or dies of it."""
    tool = llama_cpp.find().tool("llama-server")
    env = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    with tempfile.TemporaryDirectory(prefix="assay-") as folder:
        address, log = Path(folder) / "llama.sock", Path(folder) / "log"
        command = [tool, "--model", path, "--host", address, *OPTIONS]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=endings.die_with_parent(os.getpid()),
            )
        try:
            _wait(process, address, log)
            yield address
        finally:
            process.kill()
            process.wait()


def _wait(process: "subprocess.Popen[bytes]", address: Path, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise BuildError(f"llama-server was not ready within {START_SECONDS} s; its last lines:\n{_tail(log)}")
        try:
            if _request(address, "GET", "/health")[0] == http.HTTPStatus.OK:
                return
        except OSError:
            pass  # it does not listen yet
        time.sleep(0.02)
    how = f"llama-server {endings.words(process.returncode)}"
    raise (NativeCrashError if endings.crashed(how) else MeasurementError)(f"{how}; its last lines: {_tail(log)}")


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return "; ".join([line for line in lines if line][-TAIL_LINES:])


def _post(address: Path, route: str, body: Any) -> Any:
    """Return the reply; MeasurementError with the first line of what the server says when it refuses or dies."""
    try:
        status, reply = _request(address, "POST", route, json.dumps(body))
    except (OSError, http.client.HTTPException) as error:
        raise MeasurementError(f"llama-server gave no reply on {route}: {error}") from error
    value = json.loads(reply)
    if status != http.HTTPStatus.OK:
        words = str(value.get("error", {}).get("message", value)).strip()
        raise MeasurementError(f"llama-server on {route}: {words.splitlines()[0]}")
    return value


def _request(address: Path, method: str, route: str, body: str | None = None) -> tuple[int, bytes]:
    connection = _Connection("localhost", timeout=REPLY_SECONDS)
    connection.path = address
    try:
        connection.request(method, route, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket in the file system: no port to find free, and nobody else's to reach."""

    path: Path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))
