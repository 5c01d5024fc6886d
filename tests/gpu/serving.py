"""Engines behind the gateway under load, and the memory they take beside what `assay plan` foretells."""

import os

import numpy as np

from containers.gateway.process import gateway
from evals import gpu_memory, memory
from evals.load import Slo, summarize
from evals.load_client import closed_loop
from evals.windows import Windows
from pipeline import params, paths
from pipeline.commands.plan import plan
from pipeline.texts.pieces import pieces
from tests.gpu import spaces
from tests.gpu.items import Work
from tests.gpu.spaces import Space

PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64
ROUNDS = 3
"""Requests of each stream."""
TRANSFORMERS_STREAMS = (1, 8, 32)


def llama_cpp(work: Work, space: Space) -> None:
    """Serve Q4_K_M and F16 by llama-server."""
    streams = spaces.SMALL_STREAMS if work.small else spaces.STREAMS
    for name in ("gguf-q4_k_m", "gguf-f16"):
        _served(work, name, "llama_cpp", streams)


def transformers(work: Work, space: Space) -> None:
    """Serve the unquantized weights by our own batches over transformers."""
    os.chdir(spaces.CPU)
    _served(work, "bf16", "transformers", spaces.SMALL_STREAMS if work.small else TRANSFORMERS_STREAMS)


def _served(work: Work, name: str, engine: str, streams: tuple[int, ...]) -> None:
    compute = params.load().compute()
    slots, output = max(streams), 16 if work.small else OUTPUT_TOKENS
    prompt = 64 if work.small else PROMPT_TOKENS
    length = prompt + output
    flags = ("--engine", engine, "--context-tokens", str(length))
    text = Windows.load(paths.CORPUS / "evaluation.npz").ids.ravel()
    asked = pieces(text, (1 + ROUNDS) * sum(streams), prompt, "the corpus")
    prompts = iter([ids.tolist() for ids in asked])
    serving = gateway(paths.artifact(name).resolve(), compute=compute, slots=slots, flags=flags)
    with gpu_memory.watch(bool(compute.gpus)) as peak, serving as server:
        for count in streams:
            exchanges = closed_loop(
                server.url,
                server.model,
                warmup=[next(prompts) for _ in range(count)],
                prompts=[next(prompts) for _ in range(ROUNDS * count)],
                output_tokens=output,
                concurrency=count,
            )
            level = summarize(exchanges, concurrency=count, slo=Slo(ttft_seconds=0.5, tpot_seconds=0.05))
            ttft = np.median([one.ttft_seconds for one in exchanges])
            note = f"{engine}, median TTFT {1000 * ttft:.0f} ms"
            rate = level.output_tokens_per_second.value
            work.add(f"{name}, served at {count} streams", rate, "tokens/s", note=note)
        resident = memory.peak_family_rss_bytes(server.pid)
        work.add(f"{name}, seconds until served", server.load_seconds, "s")
    taken = peak.bytes if compute.gpus else resident
    assert taken is not None, "a GPU was watched"
    foretold = plan(context_tokens=server.context_tokens, concurrency=slots)
    (row,) = (row for row in foretold.rows if row.name == name)
    planned = "" if row.serving_bytes is None else f"`assay plan`: {row.serving_bytes / 2**30:.2f} GiB"
    work.add(f"{name}, memory served at {slots} streams", taken / 2**30, "GiB", gpu_bytes=peak.bytes, note=planned)
