"""A child process that speaks HTTP to us alone: what the engines that are servers have in common."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from containers.engines.child import Child
from containers.engines.contract import EngineError, UnsupportedError

POLL_SECONDS = 0.02
BUFFER_BYTES = 2**26
"""Longest line of a stream: the first one may repeat the prompt's ids."""


Command = Callable[[Path], Sequence[str | Path]]
"""From the socket to listen on to the command line; one that listens on a port leaves the socket alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A loopback port, for a server that knows no sockets in the file system. Others reach it, so it takes a key."""

    number: int
    key: str = field(repr=False)


class Server:
    """One such process, started, asked and stopped. `name` stands in errors.

    It listens on a socket in a folder that only we can enter, so there is no port to find free and nobody else's to
    reach; or, where it cannot, on a Port.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._stack: contextlib.AsyncExitStack | None = None
        self._child: Child | None = None
        self._session: aiohttp.ClientSession | None = None
        self._url = ""

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._child is not None, "not started"
        return self._child.pid

    async def start(
        self, command: Command, env: Mapping[str, str], *, port: Port | None = None, family: bool = False
    ) -> None:
        """Start the process and return when /health is good; `family` for one that starts others.

        Loading has no time limit of its own, since weights may be 100 GB. EngineError with the server's last words
        when it ends before.
        """
        async with contextlib.AsyncExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="assay-"))
            socket = Path(folder) / "engine.sock"
            self._child = await (Child.start_family if family else Child.start)(command(socket), env)
            stack.push_async_callback(self._child.kill)
            self._url = f"http://127.0.0.1:{port.number}" if port else "http://engine"
            self._session = await stack.enter_async_context(_session(port or socket))
            await self._wait()
            self._stack = stack.pop_all()

    async def stop(self) -> None:
        """End it at once. Safe to call twice."""
        if self._stack is not None:
            await self._stack.aclose()
        self._stack = self._child = self._session = None

    async def died(self) -> str:
        """Return, once it has ended by itself, why."""
        assert self._child is not None, "not started"
        return f"{self.name} {await self._child.died()}"

    async def get(self, route: str) -> Any:
        """Return the JSON of a good reply."""
        async with self.request("GET", route) as response:
            return await response.json()

    async def post(self, route: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON of a good reply."""
        async with self.request("POST", route, json=body) as response:
            return await response.json()

    async def lines(self, route: str, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a streamed reply. Closing it closes the connection, by which a server is told to stop."""
        async with self.request("POST", route, json=body) as response:
            async for line in response.content:
                yield line

    @contextlib.asynccontextmanager
    async def request(self, method: str, route: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """Give a good response. EngineError when the server is gone, UnsupportedError when it refuses."""
        if self._session is None or self._child is None:
            raise EngineError("the engine is not running")
        try:
            async with self._session.request(method, f"{self._url}{route}", **options) as response:
                if response.status >= 400:
                    raise refusal(response.status, _read(await response.text()))
                yield response
        except aiohttp.ClientError as error:
            raise EngineError(await self._why(error)) from error

    async def _wait(self) -> None:
        assert self._child is not None
        assert self._session is not None
        while self._child.running:
            with contextlib.suppress(aiohttp.ClientError, OSError):  # it does not listen yet
                async with self._session.get(f"{self._url}/health") as response:
                    if response.ok:
                        return
            await asyncio.sleep(POLL_SECONDS)
        raise EngineError(await self.died())

    async def _why(self, error: aiohttp.ClientError) -> str:
        """Say what broke a connection: most often the server's end, which is known a moment later."""
        try:
            return await asyncio.wait_for(self.died(), 1)
        except TimeoutError:
            return f"{self.name}: {error}"


def _session(where: Path | Port) -> aiohttp.ClientSession:
    """Open a client. Servers close idle connections without a word, so each request has one of its own."""
    options: dict[str, Any] = {"limit": 0, "force_close": True}
    connector: aiohttp.BaseConnector = (
        aiohttp.TCPConnector(**options) if isinstance(where, Port) else aiohttp.UnixConnector(str(where), **options)
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"Authorization": f"Bearer {where.key}"} if isinstance(where, Port) else None,
        read_bufsize=BUFFER_BYTES,
    )


def refusal(status: int, value: Any) -> Exception:
    """Return the error for a reply's status and JSON: the request's fault below 500, the server's from there on."""
    return (UnsupportedError if status < 500 else EngineError)(words(value))


def words(value: Any) -> str:
    """Find the message in what a server sends as an error: OpenAI's object, a flat one, or a text."""
    error = value.get("error", value) if isinstance(value, dict) else value
    return str(error.get("message", error) if isinstance(error, dict) else error).strip()


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
