"""How fast one artifact runs in process, one stream: the engine's own figures, without a server around it."""

import time
from collections.abc import Sequence
from statistics import median

from evals import memory, speed
from evals.runner import Ids
from evals.windows import Windows
from pipeline import digests, machine, paths
from pipeline.errors import MeasurementError
from pipeline.params import RECIPE, Params
from pipeline.progress import track
from pipeline.records import FILE, Artifact, Latency, Machine, Spread, Timing


def latency(params: Params, name: str) -> None:
    """Write measurements/latency/<name>.json, raw samples included."""
    folder = paths.artifact(name)
    artifact = Artifact.load(folder / FILE)
    if artifact.unavailable:
        unavailable = Latency(name=name, artifact=artifact.digest, unavailable=artifact.unavailable)
        unavailable.save(paths.latency(name))
        return
    digests.check_files(folder, artifact.files)
    load = params.latency
    prompt = _prompt(load.prompt_tokens)
    threads = params.threads or machine.usable_cores()
    start = time.perf_counter()
    with RECIPE.validate_python(artifact.recipe).open(folder, threads) as runner:
        load_seconds = time.perf_counter() - start
        runs = speed.time_generations(
            runner,
            prompt,
            output_tokens=load.output_tokens,
            warmup=load.warmup,
            repeats=load.repeats,
            track=lambda repeats: track(repeats, f"timing {name}"),
        )
    Latency(
        name=name,
        artifact=artifact.digest,
        machine=digests.of_value(Machine.load(paths.MACHINE).model_dump()),
        threads=threads,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        load_seconds=load_seconds,
        ttft_seconds=_spread([run.ttft_seconds for run in runs]),
        prefill_tokens_per_second=_spread([run.prefill_tokens_per_second(load.prompt_tokens) for run in runs]),
        decode_tokens_per_second=_spread([run.decode_tokens_per_second for run in runs]),
        peak_rss_bytes=memory.peak_rss_bytes(),
        samples=tuple(Timing(ttft_seconds=run.ttft_seconds, itl_seconds=run.itl_seconds) for run in runs),
    ).save(paths.latency(name))


def _prompt(tokens: int) -> Ids:
    """Take real text for the prompt: a mixture of experts routes nonsense to other experts than it routes text."""
    ids = Windows.load(paths.CORPUS / "evaluation.npz").ids.ravel()
    if len(ids) < tokens:
        raise MeasurementError(
            f"latency.prompt_tokens: {tokens}, but the evaluation windows hold only {len(ids)} tokens"
        )
    return ids[:tokens]


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=median(values), minimum=min(values), maximum=max(values))
