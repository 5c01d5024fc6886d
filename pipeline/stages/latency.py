"""How fast one artifact runs: in process with one stream, and as served, behind the gateway and under load."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from statistics import median
from typing import Any, TypeVar

from containers import engines
from containers.gateway.process import GatewayProcess, gateway
from evals import gpu_memory, interference, memory, speed
from evals.interference import TRIES, Watched
from evals.load import Level, Slo, summarize
from evals.load_client import LoadError, closed_loop
from evals.runner import Ids, Runner
from evals.windows import Windows
from pipeline import activity, digests, paths
from pipeline.compute import Compute
from pipeline.engines import ENGINES
from pipeline.params import RECIPE, LatencyParams, Params, ServingParams
from pipeline.progress import note, track
from pipeline.records import FILE, Artifact, Failure, Latency, Machine, Served, Spread, Timing, measurements
from pipeline.stages import hardware
from pipeline.texts.pieces import pieces

T = TypeVar("T")

FAILURE_SECONDS = 3.0
"""Within which a gateway whose engine is gone has told why."""


def latency(params: Params, name: str) -> None:
    """Write measurements/latency/<name>.json, raw samples included."""
    folder = paths.artifact(name)
    artifact = Artifact.load(folder / FILE)
    if reason := hardware.unavailable(artifact):
        _without(artifact, reason, artifact.failure)
        return
    digests.check_files(folder, artifact.files)
    compute = params.compute()
    # Real text: a mixture of experts routes nonsense to other experts than it routes text.
    text = Windows.load(paths.CORPUS / "evaluation.npz").ids.ravel()
    parts = Parts(name)
    Latency(
        name=name,
        artifact=artifact.digest,
        machine=digests.of_value(Machine.load(paths.MACHINE).model_dump()),
        threads=compute.threads,
        **_in_process(params.latency, artifact, text, compute, parts),
        served=_served(params.serving, artifact, text, compute, parts),
        watched=parts.watched,
    ).save(paths.latency(name))


def failed(_: Params, name: str, failure: Failure) -> None:
    """Write the output for an artifact whose timing went wrong: it says so, and holds no times."""
    _without(Artifact.load(paths.artifact(name) / FILE), failure.words, failure)


def _without(artifact: Artifact, reason: str, failure: Failure | None) -> None:
    record = Latency(name=artifact.name, artifact=artifact.digest, unavailable=reason, failure=failure)
    record.save(paths.latency(artifact.name))


class Parts:
    """The parts of one artifact's measurement: each is watched, and measured again while too much else runs."""

    def __init__(self, name: str) -> None:
        self.watched: dict[str, Watched] = {}
        self._name = name
        self._pauses = iter(interference.PAUSES)

    def measure(self, part: str, once: Callable[[int], T], *, cores: int, tries: int = TRIES) -> T:
        """Measure one part, which keeps so many cores busy, by `once`, given the number of the try."""
        what = f"{self._name}, {part}"
        found, self.watched[part] = interference.measure(
            once,
            lambda: interference.watch(wanted=cores),
            self._pauses,
            lambda why: note(f"{what}: {why}"),
            tries,
        )
        if problems := interference.problems(self.watched[part].interference):
            note(f"{what}: {'; '.join(problems)}: the figures are kept, and marked as those of a busy machine")
        return found


def _in_process(wanted: LatencyParams, artifact: Artifact, text: Ids, compute: Compute, parts: Parts) -> dict[str, Any]:
    """Time the engine by itself; return what the record holds of it."""
    (prompt,) = pieces(text, 1, wanted.prompt_tokens, "latency.prompt_tokens")
    recipe, folder = RECIPE.validate_python(artifact.recipe), paths.artifact(artifact.name)
    activity.note(f"loading {artifact.name}")
    with gpu_memory.watch(compute.device == "cuda") as gpu, ExitStack() as stack:

        def load(_: int) -> tuple[Runner, float]:
            start = time.perf_counter()
            return stack.enter_context(recipe.open(folder, compute)), time.perf_counter() - start

        runner, load_seconds = parts.measure(measurements.LOAD, load, cores=1, tries=1)
        runs = parts.measure(
            measurements.IN_PROCESS,
            lambda _: speed.time_generations(
                runner,
                prompt,
                output_tokens=wanted.output_tokens,
                warmup=wanted.warmup,
                repeats=wanted.repeats,
                track=lambda repeats: track(repeats, f"timing {artifact.name}"),
            ),
            cores=_cores(compute),
        )
    return {
        "prompt_tokens": wanted.prompt_tokens,
        "output_tokens": wanted.output_tokens,
        "load_seconds": load_seconds,
        "ttft_seconds": _spread([run.ttft_seconds for run in runs]),
        "prefill_tokens_per_second": _spread([run.prefill_tokens_per_second(wanted.prompt_tokens) for run in runs]),
        "decode_tokens_per_second": _spread([run.decode_tokens_per_second for run in runs]),
        "peak_rss_bytes": memory.peak_rss_bytes(),
        "peak_gpu_bytes": gpu.bytes,
        "samples": tuple(Timing(ttft_seconds=run.ttft_seconds, itl_seconds=run.itl_seconds) for run in runs),
    }


def _served(wanted: ServingParams, artifact: Artifact, text: Ids, compute: Compute, parts: Parts) -> Served:
    """Start the gateway as an image does, and put it under each level's load in turn."""
    slots = max(wanted.concurrency)
    prompts = _prompts(wanted, text)
    engine = engines.choose(RECIPE.validate_python(artifact.recipe), compute)
    placed, flags = wanted.placement if ENGINES[engine].needs_gpu else None, ["--engine", engine]
    if placed:
        flags += ["--tensor-parallel", str(placed.tensor_parallel)]
        flags += ["--gpu-memory-fraction", str(placed.gpu_memory_fraction)]
    activity.note(f"serving {artifact.name}")
    serving = gateway(paths.artifact(artifact.name), compute=compute, slots=slots, flags=tuple(flags))
    with gpu_memory.watch(compute.device == "cuda") as gpu, ExitStack() as stack:
        # The gateway's interpreter, and an engine's beside it.
        server = parts.measure(measurements.SERVED_LOAD, lambda _: stack.enter_context(serving), cores=2, tries=1)

        def timed(streams: int) -> Level:
            return parts.measure(
                measurements.level(streams),
                lambda number: _level(wanted, server, artifact.name, streams, prompts[number]),
                cores=_cores(compute) + 1,  # the gateway and the client take turns
                tries=len(prompts),
            )

        levels = tuple(map(timed, wanted.concurrency))
        peak = memory.peak_family_rss_bytes(server.pid)
    return Served(
        engine=engine,
        placement=placed,
        runtime=server.runtime,
        slots=slots,
        context_tokens=server.context_tokens,
        prompt_tokens=wanted.prompt_tokens,
        output_tokens=wanted.output_tokens,
        load_seconds=server.load_seconds,
        peak_rss_bytes=peak,
        peak_gpu_bytes=gpu.bytes,
        levels=levels,
    )


def _prompts(wanted: ServingParams, text: Ids) -> list[Iterator[Ids]]:
    """Return prompts for each try, as many tries as the text has different ones for.

    A repetition with prompts that the server knows would find its work done.
    """
    count = (wanted.warmup + wanted.requests) * sum(wanted.concurrency)
    tries = max(1, min(TRIES, (len(text) - wanted.prompt_tokens + 1) // count))
    found = pieces(text, tries * count, wanted.prompt_tokens, "serving.prompt_tokens")
    return [iter(found[number::tries]) for number in range(tries)]


def _level(wanted: ServingParams, server: GatewayProcess, name: str, streams: int, prompts: Iterator[Ids]) -> Level:
    what = f"serving {name}, {streams} at a time"
    requests = wanted.requests * streams
    try:
        exchanges = closed_loop(
            server.url,
            server.model,
            warmup=[prompt.tolist() for prompt in islice(prompts, wanted.warmup * streams)],
            prompts=[prompt.tolist() for prompt in islice(prompts, requests)],
            output_tokens=wanted.output_tokens,
            concurrency=streams,
            track=lambda bodies: track(bodies, what, total=requests),
        )
    except LoadError as error:
        raise server.failure(f"{what}: {error}", FAILURE_SECONDS) from error
    return summarize(exchanges, concurrency=streams, slo=Slo(**wanted.slo.model_dump()))


def _cores(compute: Compute) -> int:
    """Return how many cores an engine keeps busy: one where a GPU does the work."""
    return 1 if compute.gpus else compute.threads


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=median(values), minimum=min(values), maximum=max(values))
