"""How fast one artifact runs: in process with one stream, and as served, behind the gateway and under load."""

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import median
from typing import Any

import numpy as np

from containers import engines
from containers.gateway.process import GatewayProcess, gateway
from evals import gpu_memory, memory, speed
from evals.load import Level, Slo, summarize
from evals.load_client import LoadError, closed_loop
from evals.runner import Ids
from evals.windows import Windows
from pipeline import digests, paths
from pipeline.compute import Compute
from pipeline.errors import MeasurementError
from pipeline.params import RECIPE, LatencyParams, Params, ServingParams
from pipeline.progress import track
from pipeline.records import FILE, Artifact, Latency, Machine, Served, Spread, Timing
from pipeline.stages import hardware

PLACED = ("vllm", "tensorrt_llm")
"""Engines that are told how to use GPUs."""


def latency(params: Params, name: str) -> None:
    """Write measurements/latency/<name>.json, raw samples included."""
    folder = paths.artifact(name)
    artifact = Artifact.load(folder / FILE)
    if reason := hardware.unavailable(artifact):
        unavailable = Latency(name=name, artifact=artifact.digest, unavailable=reason)
        unavailable.save(paths.latency(name))
        return
    digests.check_files(folder, artifact.files)
    compute = params.compute()
    # Real text: a mixture of experts routes nonsense to other experts than it routes text.
    text = Windows.load(paths.CORPUS / "evaluation.npz").ids.ravel()
    Latency(
        name=name,
        artifact=artifact.digest,
        machine=digests.of_value(Machine.load(paths.MACHINE).model_dump()),
        threads=compute.threads,
        **_in_process(params.latency, artifact, text, compute),
        served=_served(params.serving, artifact, text, compute),
    ).save(paths.latency(name))


def _in_process(wanted: LatencyParams, artifact: Artifact, text: Ids, compute: Compute) -> dict[str, Any]:
    """Time the engine by itself; return what the record holds of it."""
    (prompt,) = pieces(text, 1, wanted.prompt_tokens, "latency.prompt_tokens")
    recipe, folder = RECIPE.validate_python(artifact.recipe), paths.artifact(artifact.name)
    with gpu_memory.watch(compute.device == "cuda") as gpu:
        start = time.perf_counter()
        with recipe.open(folder, compute) as runner:
            load_seconds = time.perf_counter() - start
            runs = speed.time_generations(
                runner,
                prompt,
                output_tokens=wanted.output_tokens,
                warmup=wanted.warmup,
                repeats=wanted.repeats,
                track=lambda repeats: track(repeats, f"timing {artifact.name}"),
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


def _served(wanted: ServingParams, artifact: Artifact, text: Ids, compute: Compute) -> Served:
    """Start the gateway as an image does, and put it under each level's load in turn."""
    slots = max(wanted.concurrency)
    count = (wanted.warmup + wanted.requests) * sum(wanted.concurrency)
    prompts = iter(pieces(text, count, wanted.prompt_tokens, "serving.prompt_tokens"))
    engine = engines.choose(RECIPE.validate_python(artifact.recipe), compute)
    placed, flags = wanted.placement if engine in PLACED else None, ["--engine", engine]
    if placed:
        flags += ["--tensor-parallel", str(placed.tensor_parallel)]
        flags += ["--gpu-memory-fraction", str(placed.gpu_memory_fraction)]
    with (
        gpu_memory.watch(compute.device == "cuda") as gpu,
        gateway(paths.artifact(artifact.name), compute=compute, slots=slots, flags=tuple(flags)) as server,
    ):
        levels = [_level(wanted, server, artifact.name, streams, prompts) for streams in wanted.concurrency]
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
        levels=tuple(levels),
    )


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
        raise MeasurementError(f"{what}: {error}; the gateway's last lines:\n{server.last_lines}") from error
    return summarize(exchanges, concurrency=streams, slo=Slo(**wanted.slo.model_dump()))


def pieces(text: Ids, count: int, tokens: int, key: str) -> list[Ids]:
    """Take `count` pieces of a text, no two beginning at one place, so that no server knows a prompt's beginning.

    They overlap where the text is short. MeasurementError naming `key` where it is too short even for that.
    """
    if len(text) < tokens + count - 1:
        raise MeasurementError(
            f"{key}: {tokens}, but the evaluation windows' {len(text)} tokens do not hold {count} different such pieces"
        )
    starts = np.linspace(0, len(text) - tokens, count).astype(int)
    return [text[start : start + tokens] for start in starts]


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=median(values), minimum=min(values), maximum=max(values))
