"""`trtllm-serve` with a lock: `python3 guard.py KEYFILE ARGUMENTS...`, in the Python that has TensorRT-LLM.

It listens on a port of loopback, which everybody on the machine can reach, and knows no keys and no sockets in the file
system. Here every route asks for the key in KEYFILE, which lies where only its owner can read. It imports nothing of
ours, and ends when its stdin does, since a container outlives the client that started it.
"""

import hmac
import os
import sys
import threading
from pathlib import Path
from typing import Any


class Guard:
    """ASGI middleware: 401 for whoever does not bring the key."""

    def __init__(self, app: Any, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Let a request pass, or refuse it."""
        if scope["type"] == "lifespan" or self._known(scope):
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def _known(self, scope: dict[str, Any]) -> bool:
        return hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), self._expected)


def main() -> None:
    """Put the guard around the application that the server is about to run, and run its own command."""
    from tensorrt_llm.serve.openai_server import OpenAIServer

    key = Path(sys.argv[1]).read_text(encoding="utf-8").strip()
    serve = OpenAIServer.__call__

    async def guarded(server: Any, *arguments: Any, **options: Any) -> None:
        server.app.add_middleware(Guard, key=key)
        await serve(server, *arguments, **options)

    OpenAIServer.__call__ = guarded
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    from tensorrt_llm.commands.serve import main as command

    sys.argv = ["trtllm-serve", *sys.argv[2:]]
    command()


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
