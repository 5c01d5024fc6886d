"""Running a gateway until it is told to stop: new work is refused then, what is under way may end."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Iterator

import uvicorn

from containers import engines
from containers.engines.contract import Engine
from containers.gateway.app import Gateway, build
from containers.gateway.evidence import Evidence
from containers.gateway.logs import log
from containers.gateway.settings import Settings
from pipeline import compute

POLL_SECONDS = 0.05
BACKLOG = 2048
LINGER_SECONDS = 1.0
"""After the last answer: until then new requests are told 503, so that a load balancer turns elsewhere at once."""


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would end by the signal, and a drained server has not failed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: Settings, evidence: Evidence) -> None:
    """Serve an artifact until SIGTERM or SIGINT; return when everything has ended. OSError for a port that is taken."""
    engine = engines.engine(
        settings.artifact,
        compute=compute.here(settings.threads, settings.device),
        slots=settings.slots,
        context_tokens=settings.context_tokens,
        fixed=settings.engine,
        placement=settings.placement,
        drain_seconds=settings.drain_seconds,
    )
    run(settings, engine, evidence)


def run(settings: Settings, engine: Engine, evidence: Evidence) -> None:
    """See `serve`; the engine is the caller's choice."""
    listening = _listen(settings.host, settings.port)
    app = build(settings, engine, evidence, log)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(_Server(config), listening, app.state.gateway))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise OSError(f"{host}:{port}: {error.strerror or error}") from error


async def _serve(server: _Server, listening: socket.socket, gateway: Gateway) -> None:
    draining: list[asyncio.Task[None]] = []

    def stop() -> None:
        if draining:  # a second signal: at once
            server.should_exit = server.force_exit = True
        else:
            draining.append(asyncio.create_task(_drain(server, gateway)))

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(POLL_SECONDS)
    if server.started:
        host, port = listening.getsockname()[:2]
        gateway.log(
            "listening", host=host, port=port, model=gateway.api.model, artifact=gateway.evidence.artifact.digest
        )
    await serving


async def _drain(server: _Server, gateway: Gateway) -> None:
    began = time.monotonic()
    gateway.admission.draining = True
    gateway.log("draining", requests=gateway.admission.requests, limit_seconds=gateway.settings.drain_seconds)
    while gateway.admission.requests and time.monotonic() - began < gateway.settings.drain_seconds:
        await asyncio.sleep(POLL_SECONDS)
    left = gateway.admission.requests
    if left:
        await gateway.stop()  # who is being answered learns it as an error, not as a lost connection
    await asyncio.sleep(min(LINGER_SECONDS, gateway.settings.drain_seconds))
    gateway.log("stopped", abandoned_requests=left, seconds=round(time.monotonic() - began, 3))
    server.should_exit = True
