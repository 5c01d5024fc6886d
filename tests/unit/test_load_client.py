"""The load client against the gateway over an engine with a known clock, and against servers that misbehave."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from aiohttp import web

from evals.load import Exchange
from evals.load_client import LoadError, closed_loop
from tests.support.fakes import FakeEngine
from tests.support.gateways import KEY, gateway

DELAY = 0.05
PROMPTS = [[number, 2, 3] for number in range(8)]


def load(url: str, *, concurrency: int = 2, output_tokens: int = 5, silence_seconds: float = 20.0) -> list[Exchange]:
    return list(
        closed_loop(
            url, "demo", warmup=[[9, 9]] * concurrency, prompts=PROMPTS, output_tokens=output_tokens,
            concurrency=concurrency, key=KEY, silence_seconds=silence_seconds,
        )
    )  # fmt: skip


def test_times_and_counts_are_those_of_the_engine(tmp_path: Path) -> None:
    engine = FakeEngine(delay_seconds=DELAY)
    with gateway(tmp_path, engine) as served:
        began = time.perf_counter()
        exchanges = load(served.address)
        took = time.perf_counter() - began
    assert engine.most_running == 2
    assert [one.completion_tokens for one in exchanges] == [5] * len(PROMPTS)
    assert [one.prompt_tokens for one in exchanges] == [3] * len(PROMPTS)
    assert sorted(map(tuple, engine.prompts[-len(PROMPTS) :])) == sorted(map(tuple, PROMPTS)), "after the warm-up"
    # Never early, and late by what a busy machine costs: the middle request says little of that.
    assert all(one.ttft_seconds >= DELAY for one in exchanges)
    assert median(one.ttft_seconds for one in exchanges) < 3 * DELAY
    gaps = [gap for one in exchanges for gap in one.itl_seconds or ()]
    assert len(gaps) == 4 * len(PROMPTS)
    assert DELAY * 0.9 < median(gaps) < 2 * DELAY
    assert all(one.end_to_end_seconds >= 5 * DELAY for one in exchanges)
    assert max(one.end_seconds for one in exchanges) <= took


def test_a_stream_sends_its_next_request_when_it_has_its_answer(tmp_path: Path) -> None:
    with gateway(tmp_path, FakeEngine(delay_seconds=0.01)) as served:
        exchanges = sorted(load(served.address, concurrency=1), key=lambda one: one.start_seconds)
    for before, after in pairwise(exchanges):
        assert before.end_seconds <= after.start_seconds < before.end_seconds + 0.5


def test_refusals_are_told_in_the_servers_words(tmp_path: Path) -> None:
    with gateway(tmp_path, FakeEngine(slots=1, delay_seconds=0.05), slots=1, queue=0) as served:
        with pytest.raises(LoadError, match=r"answered 429: queue_full: "):
            load(served.address)
        with pytest.raises(LoadError, match=r"answered 401: "):
            closed_loop(served.address, "demo", warmup=[], prompts=PROMPTS, output_tokens=2, concurrency=1, key="wrong")
        with pytest.raises(LoadError, match=r"answered 400: context_length_exceeded: "):
            load(served.address, output_tokens=1000)


def test_an_engine_that_dies_in_the_middle_ends_the_load(tmp_path: Path) -> None:
    engine = FakeEngine(delay_seconds=0.05)
    with gateway(tmp_path, engine) as served:
        threading.Timer(0.6, engine.die).start()
        with pytest.raises(LoadError, match=r"the server (failed in the middle of an answer|answered 503)"):
            load(served.address)


Behaviour = Callable[[web.Request, web.StreamResponse], Awaitable[None]]


@contextmanager
def misbehaving(behaviour: Behaviour) -> Iterator[str]:
    """A server that begins a stream and then does as it is told."""
    started = threading.Event()
    address: list[tuple[str, Callable[[], object]]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event(text="a"))
        await behaviour(request, response)
        return response

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/completions", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        address.append((f"http://127.0.0.1:{runner.addresses[0][1]}", lambda: loop.call_soon_threadsafe(stopped.set)))
        started.set()
        await stopped.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait()
    url, stop = address[0]
    try:
        yield url
    finally:
        stop()
        thread.join()


def event(*, text: str = "", usage: int | None = None) -> bytes:
    choices = [] if usage is not None else [{"text": text, "finish_reason": None}]
    counts = None if usage is None else {"prompt_tokens": 3, "completion_tokens": usage}
    return b"data: " + json.dumps({"choices": choices, "usage": counts}).encode() + b"\n\n"


async def _hangs_up(request: web.Request, _: web.StreamResponse) -> None:
    assert request.transport is not None
    request.transport.abort()


async def _falls_silent(_: web.Request, __: web.StreamResponse) -> None:
    await asyncio.sleep(60)


async def _stops_short(_: web.Request, response: web.StreamResponse) -> None:
    await response.write(event(text="b") + event(usage=2) + b"data: [DONE]\n\n")


async def _has_no_end(_: web.Request, response: web.StreamResponse) -> None:
    await response.write(event(usage=5))


async def _babbles(_: web.Request, response: web.StreamResponse) -> None:
    await response.write(b"data: <html>\n\n")


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (_hangs_up, "hung up or fell silent"),
        (_falls_silent, "hung up or fell silent"),
        (_stops_short, "usage tells of 2 tokens, 5 were asked for"),
        (_has_no_end, "ended an answer in the middle"),
        (_babbles, "no JSON: b'<html>'"),
    ],
)
def test_a_server_that_misbehaves_is_an_error_and_no_hang(behaviour: Behaviour, words: str) -> None:
    began = time.monotonic()
    with misbehaving(behaviour) as url, pytest.raises(LoadError, match=words):
        load(url, silence_seconds=0.5)
    assert time.monotonic() - began < 20


def test_nobody_there() -> None:
    with pytest.raises(LoadError, match="ClientConnectorError"):
        load("http://127.0.0.1:9")
