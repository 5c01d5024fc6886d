"""Whether the built image serves what was measured: it is started as it would be in production, and asked."""

import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import httpx2

from evals import agreement, interference
from evals.interference import Watching
from evals.load_client import LoadError
from evals.runner import Ids
from evals.tokens import Tokens
from evals.windows import Windows
from pipeline import machine, paths
from pipeline.engines import CONTEXT_TOKENS, ENGINES
from pipeline.errors import MeasurementError, RequirementError, VerificationError
from pipeline.images import checks, container
from pipeline.images.checks import Client
from pipeline.images.container import Container
from pipeline.params import Params
from pipeline.progress import track
from pipeline.records import FILE, Check, Checkpoint, Image, Latency, Quality, Served, Verification
from pipeline.texts.pieces import pieces

READY_SECONDS = 1800.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.1
PROMPT_TOKENS, DRAINED_TOKENS = 16, 64
"""Tokens of the prompt, and of the answer in whose middle SIGTERM comes."""


def verification(params: Params) -> None:
    """Write verification.json. VerificationError names the checks that the image did not pass."""
    image = Image.load(paths.IMAGE / FILE)
    if image.unavailable is not None:
        Verification(image=None, unavailable=image.unavailable).save(paths.VERIFICATION)
        return
    try:
        container.find()
    except RequirementError as error:
        Verification(image=image.digest, unavailable=str(error)).save(paths.VERIFICATION)
        return
    record = Verification(image=image.digest, checks=tuple(_run(params, image)))
    record.save(paths.VERIFICATION)
    missed = [f"  {one.name}: {one.found}; expected {one.expected}" for one in record.checks if not one.passed]
    if missed:
        raise VerificationError("\n".join(["the image does not serve what was measured:", *missed]))


def _run(params: Params, image: Image) -> Sequence[Check]:
    port, key = _free_port(), secrets.token_urlsafe(24)
    windows = Windows.load(paths.CORPUS / "evaluation.npz")
    environment = {
        "ASSAY_HOST": "127.0.0.1",
        "ASSAY_PORT": str(port),
        "ASSAY_API_KEYS": f"verification:{key}",
        "ASSAY_SLOTS": str(max(params.serving.concurrency)),
        "ASSAY_THREADS": str(params.threads or machine.usable_cores()),
        "ASSAY_REQUEST_BYTES": str(64 * 2**20),
        "ASSAY_CONTEXT_TOKENS": str(max(CONTEXT_TOKENS, windows.ids.shape[1])),
    }
    served = Latency.load(paths.latency(image.artifact)).served
    assert served is not None, "an artifact that was not served wins nothing"
    with container.started(paths.IMAGE / "layout", environment, gpus=served.placement is not None) as running:
        client = Client(f"http://127.0.0.1:{port}", key)
        try:
            return list(_asked(params, image.artifact, served, client, windows, running))
        except (httpx2.HTTPError, LoadError) as error:
            raise VerificationError(
                f"the image failed while it was asked: {error}; its last lines:\n{running.last_lines}"
            ) from error


def _asked(
    params: Params, name: str, served: Served, client: Client, windows: Windows, running: Container
) -> Iterator[Check]:
    """Wait until it is ready, and check one thing after the other; the last ends it.

    Where llama.cpp's kernels fail on this processor nothing else is asked: the server may not even start.
    """
    if ENGINES[served.engine].toolchain:
        tried = checks.kernels(running)
        yield tried
        if not tried.passed:
            return
    seconds = _wait(client, running)
    yield Check(name="ready", passed=True, found=f"after {seconds:.1f} s", expected="a token generated")
    yield _user(running)
    yield checks.authentication(client.url)
    yield checks.evidence(client, _expected(name))
    # The gateway and the client take turns beside the engine. No container descends from this process.
    cores = 1 + (1 if served.placement else params.threads or machine.usable_cores())
    watching = partial(interference.watch, wanted=cores, roots=(running.pid,))
    yield from _served(params, name, served, client, windows, watching)
    prompt, stop = windows.ids[0][:PROMPT_TOKENS], lambda: running.wait(STOP_SECONDS)
    yield checks.drain(client, prompt, DRAINED_TOKENS, running.terminate, stop)


def _served(
    params: Params, name: str, served: Served, client: Client, windows: Windows, watching: Watching
) -> Iterator[Check]:
    """Hold log-probabilities, tokens and speed against what was measured of the artifact."""
    quality = Quality.load(paths.quality(name))
    assert quality.perplexity is not None, "an unavailable artifact wins nothing"
    engine = ENGINES[served.engine]
    tolerance = checks.SAME_CODE if engine.scores_as_evaluation else checks.OTHER_KERNELS
    if engine.scores_prompts:
        yield checks.scores(client, windows, quality.perplexity, tolerance, _bar("scoring through the image"))
    prompts = agreement.prompts(windows, params.greedy.prompts, params.greedy.prompt_tokens)
    tokens = Tokens.load(paths.tokens(name))
    ends = Checkpoint.load(paths.CHECKPOINT / FILE).end_ids
    yield checks.greedy(client, prompts, tokens, tolerance, ends, _bar("comparing answers of the image"))
    yield _throughput(params, name, served, client, windows, watching)


def _throughput(
    params: Params, name: str, served: Served, client: Client, windows: Windows, watching: Watching
) -> Check:
    serving, streams = params.serving, params.selection.concurrency
    level = served.at(streams)
    if level is None:
        raise MeasurementError(f"{name} was not measured at {streams} streams; run `dvc repro`")
    count = (serving.warmup + serving.requests) * streams
    return checks.throughput(
        client,
        pieces(windows.ids.ravel(), count, serving.prompt_tokens, "serving.prompt_tokens"),
        output_tokens=serving.output_tokens,
        concurrency=streams,
        measured=level.output_tokens_per_second.value,
        watching=watching,
    )


def _expected(name: str) -> dict[str, Path]:
    return {"artifact": paths.artifact(name) / FILE, **paths.evidence(name)}


def _wait(client: Client, running: Container) -> float:
    """Wait until the server is ready; VerificationError with its last lines when it ends or takes too long."""
    began = time.monotonic()
    while not client.ready():
        if not running.running:
            raise VerificationError(
                f"the image {running.ending} before it was ready; its last lines:\n{running.last_lines}"
            )
        if (why := running.engine_failure) is not None:
            raise VerificationError(f"the image has an engine that does not come up: the engine {why}")
        if time.monotonic() - began > READY_SECONDS:
            raise VerificationError(f"the image was not ready in {READY_SECONDS:g} s:\n{running.last_lines}")
        time.sleep(POLL_SECONDS)
    return time.monotonic() - began


def _user(running: Container) -> Check:
    user = running.user_id
    return Check(name="user", passed=user != 0, found=f"user id {user}", expected="not root, on a read-only root")


def _bar(what: str) -> Callable[[Iterable[Ids]], Iterable[Ids]]:
    return lambda items: track(items, what)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
