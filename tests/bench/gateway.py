"""What the gateway costs over bare llama-server, and what it does with more requests than it can answer."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import aiohttp
import numpy as np

from containers.engines.llama_cpp.engine import OPTIONS
from containers.gateway.process import gateway as served
from evals import memory
from evals.load import Exchange
from evals.load_client import closed_loop
from pipeline.compute import Compute
from pipeline.records import FILE, Artifact, File
from pipeline.toolchains import llama_cpp
from tests.bench.workspace import PYTHON, ROOT, Row, random_checkpoint, row, run

THREADS = len(os.sched_getaffinity(0))
SLOTS, CONTEXT_TOKENS = 8, 512
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 64
REQUESTS = {1: 6, 8: 24}
"""Requests of one round, by streams."""
ROUNDS = 3
OVERLOAD_SECONDS = 60.0


def gateway(scratch: Path) -> list[Row]:
    """Hold tokens/s and TTFT against bare llama-server's on 250 million parameters; time both until they are ready.

    Rounds of the two alternate, since neither the machine nor its neighbours are the same from minute to minute.
    """
    file = _gguf(scratch)
    rows = _ready(scratch, file)
    with _bare(file) as bare, served(scratch, compute=Compute(threads=THREADS), slots=SLOTS, flags=_flags()) as ours:
        for streams in REQUESTS:
            rounds = [
                (_round(bare, "model", streams, 2 * number), _round(ours.url, ours.model, streams, 2 * number + 1))
                for number in range(1 + ROUNDS)
            ][1:]
            bare_rate, our_rate = (max(_rate(each[side]) for each in rounds) for side in (0, 1))
            bare_ttft, our_ttft = (median(_ttft(each[side]) for each in rounds) for side in (0, 1))
            what = f"gateway / bare llama-server, {streams} streams"
            prefix = f"{our_rate:.0f} / {bare_rate:.0f} tok/s = "
            rows.append(row(f"{what}, output tokens/s", our_rate / bare_rate, at_least=0.95, prefix=prefix))
            prefix = f"{1e3 * our_ttft:.1f} - {1e3 * bare_ttft:.1f} = "
            rows.append(row(f"{what}, TTFT p50 beyond, ms", 1e3 * (our_ttft - bare_ttft), at_most=5, prefix=prefix))
    return rows


def overload(scratch: Path) -> list[Row]:
    """Send requests at 4 times the rate that the gateway can answer, for a minute."""
    _gguf(scratch)
    with served(
        scratch, compute=Compute(threads=THREADS), slots=SLOTS, flags=(*_flags(), "--queue", str(SLOTS))
    ) as ours:
        capacity = max(_rate(_round(ours.url, ours.model, SLOTS, number)) for number in range(3)) / OUTPUT_TOKENS
        before = memory.peak_family_rss_bytes(ours.pid)
        outcomes, seconds = asyncio.run(_flood(ours.url, ours.model, 4 * capacity))
        after = memory.peak_family_rss_bytes(ours.pid)
        asyncio.run(_settled(ours.url))
    good, refused = outcomes.count("200"), outcomes.count("429")
    others = len(outcomes) - good - refused
    prefix = f"{good / seconds:.1f} / {capacity:.1f} requests/s = "
    return [
        row(
            "overload at 4 times capacity, answered / capacity", good / seconds / capacity, at_least=0.9, prefix=prefix
        ),
        row(f"overload: of {len(outcomes)} requests, neither answered nor refused with 429", others, at_most=0),
        row("overload: peak memory after / before", after / before, at_most=1.1),
    ]


def _gguf(scratch: Path) -> Path:
    """Make an artifact of a random checkpoint, as Q4_K_M, in `scratch`; return its file."""
    checkpoint, whole, file = scratch / "checkpoint", scratch / "whole.gguf", scratch / "model-Q4_K_M.gguf"
    if not file.exists():
        random_checkpoint(ROOT / "models/demo", checkpoint, hidden=1024, inner=2816, layers=20, heads=16)
        toolchain = llama_cpp.find()
        run([PYTHON, toolchain.converter, checkpoint, "--outfile", whole, "--outtype", "f16"], cwd=scratch)
        run([toolchain.tool("llama-quantize"), whole, file, "Q4_K_M"], cwd=scratch)
        whole.unlink()
        recipe = {"backend": "gguf", "quantization": "Q4_K_M", "imatrix": False}
        files = (File(path=file.name, bytes=file.stat().st_size, sha256="0" * 64),)
        record = {"name": "model", "recipe": recipe, "checkpoint": "c", "calibration": "e", "digest": "0" * 64}
        Artifact.model_validate({**record, "files": files}).save(scratch / FILE)
    return file


def _flags() -> tuple[str, ...]:
    return ("--context-tokens", str(CONTEXT_TOKENS))


@contextmanager
def _bare(file: Path) -> Iterator[str]:
    """Run llama-server as the gateway runs it, on a port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sizes = ("--ctx-size", SLOTS * CONTEXT_TOKENS, "--parallel", SLOTS, "--threads", THREADS, "--port", port)
    command = [llama_cpp.find().tool("llama-server"), "--model", file, "--host", "127.0.0.1", *sizes, *OPTIONS]
    with subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    ) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            while not _answers(f"{url}/health"):
                time.sleep(0.01)
            yield url
        finally:
            server.send_signal(signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _ready(scratch: Path, file: Path) -> list[Row]:
    """Time both from the start of their process, the file in the page cache."""
    ours, bare = [], []
    for _ in range(3):
        began = time.perf_counter()
        with _bare(file):
            bare.append(time.perf_counter() - began)
        with served(scratch, compute=Compute(threads=THREADS), slots=SLOTS, flags=_flags()) as server:
            ours.append(server.load_seconds)
    limit = 1.3 * min(bare) + 2
    what = f"seconds until the gateway is ready, llama-server alone {min(bare):.2f}"
    return [row(what, min(ours), at_most=round(limit, 2))]


def _round(url: str, model: str, streams: int, seed: int) -> tuple[Exchange, ...]:
    """Answer random prompts, no two of which begin alike."""
    random = np.random.default_rng(seed)
    count = REQUESTS.get(streams, 3 * streams)
    prompts = random.integers(10, 4000, (streams + count, PROMPT_TOKENS)).tolist()
    return closed_loop(
        url,
        model,
        warmup=prompts[:streams],
        prompts=prompts[streams:],
        output_tokens=OUTPUT_TOKENS,
        concurrency=streams,
        keep_alive=False,  # llama-server does not keep them
    )


def _rate(exchanges: tuple[Exchange, ...]) -> float:
    """Output tokens per second of a round."""
    wall = max(one.end_seconds for one in exchanges) - min(one.start_seconds for one in exchanges)
    return sum(one.completion_tokens for one in exchanges) / wall


def _ttft(exchanges: tuple[Exchange, ...]) -> float:
    return median(one.ttft_seconds for one in exchanges)


async def _flood(url: str, model: str, per_second: float) -> tuple[list[str], float]:
    """Send requests at a fixed rate, whatever comes back; return what came of each, and the seconds until the last."""
    random = np.random.default_rng(99)

    async def one(session: aiohttp.ClientSession, ids: list[int]) -> str:
        body = {"model": model, "prompt": ids, "max_tokens": OUTPUT_TOKENS, "temperature": 0, "ignore_eos": True}
        try:
            async with session.post(f"{url}/v1/completions", json=body) as response:
                reply = json.loads(await response.read())
                if response.status == 200:
                    return "200" if reply["usage"]["completion_tokens"] == OUTPUT_TOKENS else "short"
                return str(response.status) if "Retry-After" in response.headers else "no Retry-After"
        except (aiohttp.ClientError, TimeoutError) as error:
            return type(error).__name__

    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.perf_counter()
        sent = []
        for number in range(int(OVERLOAD_SECONDS * per_second)):
            await asyncio.sleep(max(0, began + number / per_second - time.perf_counter()))
            ids = random.integers(10, 4000, PROMPT_TOKENS).tolist()
            sent.append(asyncio.create_task(one(session, ids)))
        outcomes = await asyncio.gather(*sent)
        return list(outcomes), time.perf_counter() - began


async def _settled(url: str) -> None:
    """Check that nothing is left at work or waiting."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    for gauge in ("assay_queue_length 0.0", "assay_requests_running 0.0"):
        if gauge not in lines:
            raise SystemExit(
                f"after the overload: {gauge} expected, found {[x for x in lines if gauge.split()[0] in x]}"
            )
