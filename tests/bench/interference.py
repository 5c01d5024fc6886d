"""What other work on the machine costs the demo's served speed: where evals.interference's limit comes from."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import sleep

from containers.gateway.process import gateway
from evals.interference import watch
from evals.load import Slo, summarize
from evals.load_client import closed_loop
from evals.windows import Windows
from pipeline.compute import Compute
from pipeline.texts.pieces import pieces
from tests.bench.workspace import PYTHON, Row, row, run, workspace

THREADS = len(os.sched_getaffinity(0))
STREAMS, REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 4, 24, 128, 32
ROUNDS = 4
LOOPS = ((0, 0.0), (1, 0.05), (1, 0.1), (1, 0.2), (1, 0.5), (1, 1.0), (2, 1.0))
"""How many, and for what share of the time each burns a core."""

BURN = """
import sys, time
share, began = float(sys.argv[1]), time.perf_counter()
while True:
    while time.perf_counter() < began + share * 0.05: pass
    began += 0.05
    time.sleep(max(0.0, began - time.perf_counter()))
"""


def interference(scratch: Path) -> list[Row]:
    """Output tokens per second and TTFT of two artifacts beside loops, in medians of the rounds."""
    names = {"gguf-q8_0": "llama_cpp", "onnx-int8": "onnxruntime"}
    clone = workspace(scratch / "clone", tuple(names))
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    for stage in (["inputs"], ["checkpoint"], ["corpus"], *(["artifact", name] for name in names)):
        run([PYTHON, "-m", "pipeline", *stage], clone, environment)
    windows = Windows.load(clone / "corpus/evaluation.npz")
    return [one for name, engine in names.items() for one in beside(clone / "artifacts" / name, engine, windows)]


def beside(artifact: Path, engine: str, windows: Windows) -> Iterator[Row]:
    """Serve one artifact, with more and more beside it."""
    prompts = pieces(windows.ids.ravel(), len(LOOPS) * ROUNDS * (STREAMS + REQUESTS), PROMPT_TOKENS, "prompts")
    left = iter([prompt.tolist() for prompt in prompts])
    with gateway(artifact, compute=Compute(threads=THREADS), slots=STREAMS, flags=("--engine", engine)) as server:
        for count, share in LOOPS:
            rates, waits, others = [], [], []
            with _burning(count, share):
                for _ in range(ROUNDS):
                    with watch(wanted=THREADS) as seen:
                        exchanges = closed_loop(
                            server.url,
                            server.model,
                            warmup=[next(left) for _ in range(STREAMS)],
                            prompts=[next(left) for _ in range(REQUESTS)],
                            output_tokens=OUTPUT_TOKENS,
                            concurrency=STREAMS,
                        )
                    level = summarize(exchanges, concurrency=STREAMS, slo=Slo(ttft_seconds=1, tpot_seconds=1))
                    rates.append(level.output_tokens_per_second.value)
                    waits.append(1000 * (level.ttft_seconds.p50.value if level.ttft_seconds.p50 else float("nan")))
                    found = seen.interference
                    others.append((found.other_cpu_seconds or 0) / found.seconds if found else float("nan"))
            what = f"{artifact.name} beside {count} loops at {share:.0%}"
            yield row(f"{what}: processors that others ran", median(others))
            yield row(f"{what}: output tokens/s", median(rates))
            yield row(f"{what}: TTFT p50, ms", median(waits))


@contextmanager
def _burning(count: int, share: float) -> Iterator[None]:
    """Burn cores in processes that are no descendants of this one: a shell starts each and ends."""
    start = ["sh", "-c", '"$0" -S -c "$1" "$2" >/dev/null 2>&1 & echo $!', sys.executable, BURN, str(share)]
    running = [int(subprocess.check_output(start, start_new_session=True)) for _ in range(count)]
    try:
        sleep(0.5)
        yield
    finally:
        for pid in running:
            os.kill(pid, 9)
