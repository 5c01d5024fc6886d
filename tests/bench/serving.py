"""The engines that serve, on a model large enough that it and not the protocol is what costs."""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from containers.engines.contract import Engine, Sampling
from containers.engines.python import PythonEngine
from evals.runner import Ids, Runner
from evals.speed import time_generations
from evals.windows import Windows
from pipeline.compute import Compute
from pipeline.params import RECIPE
from pipeline.records import FILE, Artifact
from tests.bench.workspace import PYTHON, Row, random_checkpoint, row, run, workspace

THREADS = len(os.sched_getaffinity(0))
STREAMS = 4
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 128
ROUNDS = 5

Rates = npt.NDArray[np.float64]
"""Tokens per second of each round."""


def engines(scratch: Path) -> list[Row]:
    """Output tokens per second that a batch gains, and what the worker costs over the Runner that it holds.

    250 million parameters. Both sides of a ratio are timed within one round, and the median of the rounds counts.
    """
    names = ("onnx-int4", "onnx-int8")
    clone = _artifacts(scratch / "clone", names)
    windows = Windows.load(clone / "corpus/evaluation.npz").ids
    prompts = [ids[:PROMPT_TOKENS] for ids in windows[:STREAMS]]
    rows = []
    for name in names:
        folder = clone / "artifacts" / name
        recipe = RECIPE.validate_python(Artifact.load(folder / FILE).recipe)
        with recipe.open(folder, Compute(threads=THREADS)) as runner:
            rates = asyncio.run(_rates(folder, runner, prompts))
        bare, one, several = np.array(rates).T
        rows += [
            _row(f"ONNX engine, {STREAMS} streams / 1 stream, {name}, tokens/s", several, one, 1.8),
            _row(f"ONNX engine, 1 stream / its Runner alone, {name}, tokens/s", one, bare, 0.9),
        ]
    return rows


def _artifacts(clone: Path, names: Sequence[str]) -> Path:
    """Build artifacts of a random checkpoint."""
    workspace(clone, names)
    random_checkpoint(clone / "models/demo", clone / "models/random", hidden=1024, inner=2816, layers=20, heads=16)
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["checkpoint"]["source"] = "models/random"
    for split in ("calibration", "evaluation"):
        params["corpus"][split]["windows"] = 8
    (clone / "params.yaml").write_text(yaml.safe_dump(params))
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    for stage in (["inputs"], ["checkpoint"], ["corpus"], *(["artifact", name] for name in names)):
        run([PYTHON, "-m", "pipeline", *stage], clone, environment)
    return clone


async def _rates(folder: Path, runner: Runner, prompts: Sequence[Ids]) -> list[tuple[float, float, float]]:
    """Return each round's output tokens per second: of the bare Runner, of one stream, and of all together."""
    engine = PythonEngine(
        folder, compute=Compute(threads=THREADS), slots=len(prompts), context_tokens=PROMPT_TOKENS + OUTPUT_TOKENS
    )
    await engine.start()
    try:
        rates = [
            (_bare(runner, prompts[0]), await _rate(engine, prompts[:1]), await _rate(engine, prompts))
            for _ in range(1 + ROUNDS)
        ]
    finally:
        await engine.stop()
    return rates[1:]  # the first is the warm-up


async def _rate(engine: Engine, prompts: Sequence[Ids]) -> float:
    """Return tokens per second between the last stream's first token and the end of the first that ends."""
    stamps: list[list[float]] = [[] for _ in prompts]

    async def stream(index: int) -> None:
        sampling = Sampling(max_tokens=OUTPUT_TOKENS, temperature=0, ignore_eos=True)
        async with aclosing(engine.generate(prompts[index].tolist(), sampling)) as tokens:
            async for _ in tokens:
                stamps[index].append(time.perf_counter())

    await asyncio.gather(*map(stream, range(len(prompts))))
    begin, end = max(one[0] for one in stamps), min(one[-1] for one in stamps)
    return sum(begin < stamp <= end for one in stamps for stamp in one) / (end - begin)


def _bare(runner: Runner, prompt: Ids) -> float:
    (timed,) = time_generations(runner, prompt, output_tokens=OUTPUT_TOKENS, warmup=0, repeats=1)
    return timed.decode_tokens_per_second


def _row(what: str, ours: Rates, theirs: Rates, at_least: float) -> Row:
    prefix = f"{np.median(ours):,.0f} / {np.median(theirs):,.0f}, by round "
    return row(what, float(np.median(ours / theirs)), at_least=at_least, prefix=prefix)
