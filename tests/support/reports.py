"""Finished runs of any size, made of seeded random figures: what a report is written from."""

from collections.abc import Mapping
from random import Random

from evals.agreement import Agreement
from evals.answers import Answers, Outcome
from evals.divergence import Divergence
from evals.interference import Watched
from evals.load import Exchange, Slo, summarize
from evals.perplexity import Perplexity
from evals.statistics import Estimate, share
from pipeline.metrics import Measured
from pipeline.params import Bound, LatencyParams, Objective, SelectionParams, ServingParams, SloParams
from pipeline.records import (
    Build,
    Checkpoint,
    Corpus,
    File,
    Gpu,
    Latency,
    Machine,
    Predicted,
    Quality,
    Reference,
    Selection,
    Served,
    Split,
    Spread,
    TaskAnswers,
    Tasks,
)
from pipeline.report.content import Run
from pipeline.stages import selection

BACKENDS = ("gguf", "gptq", "awq", "onnx")
GONE = "awq-gone"
WHY = "needs an NVIDIA GPU | <b>of compute capability 8.9</b> for fp8"
SLO = SloParams(ttft_seconds=0.5, tpot_seconds=0.05)
SERVING = ServingParams(concurrency=(1, 4), requests=24, warmup=1, prompt_tokens=128, output_tokens=32, slo=SLO)


def finished(
    count: int,
    *,
    limit: float = 1.01,
    gone: bool = True,
    requests: int = 24,
    watched: Mapping[str, Mapping[str, Watched]] | None = None,
) -> tuple[Selection, Run]:
    """Return a ranking of so many artifacts, one more that is unavailable, and what it rests on.

    `watched` says what else ran while an artifact was timed, part by part.
    """
    random = Random(count)
    named = [f"{BACKENDS[number % len(BACKENDS)]}-{number}" for number in range(count)]
    quality = {name: _quality(random, name, number) for number, name in enumerate(named)}
    latency = {name: _latency(random, name, requests) for name in named}
    for name, parts in (watched or {}).items():
        latency[name] = latency[name].model_copy(update={"watched": dict(parts)})
    tasks = {name: _tasks(random, name) for name in named}
    builds = {name: _build(random, name, quality[name], latency[name]) for name in named}
    if gone:
        quality[GONE] = Quality(name=GONE, artifact="0" * 64, unavailable=WHY)
        latency[GONE] = Latency(name=GONE, artifact="0" * 64, unavailable=WHY)
        tasks[GONE] = Tasks(name=GONE, artifact="0" * 64, unavailable=WHY)
        builds[GONE] = Build(artifact="0" * 64, seconds=None, peak_rss_bytes=None)
    wanted = SelectionParams(
        objective=Objective(metric="served_output_tokens_per_second", direction="maximize"),
        constraints={"perplexity_ratio": Bound(at_most=limit)},
        concurrency=4,
    )
    run = Run(
        checkpoint=CHECKPOINT,
        corpus=CORPUS,
        reference=REFERENCE,
        machine=MACHINE,
        recipes={name: {"backend": name.partition("-")[0], "bits": 4, "desc": None} for name in quality},
        builds=builds,
        quality=quality,
        tasks=tasks,
        latency=latency,
        floors={name: named[0] if name.startswith("gguf") else None for name in quality},
        timing=LatencyParams(prompt_tokens=256, output_tokens=64, warmup=1, repeats=5),
        serving=SERVING,
        concurrency=4,
        threads=2,
    )
    measured = [
        Measured(quality=quality[name], latency=latency[name], tasks=tasks[name], concurrency=4)
        for name in sorted(quality)
    ]
    return selection.select(wanted, measured), run


def around(value: float, reach: float) -> Estimate:
    """An estimate with an interval of `reach` to both sides."""
    return Estimate(value=value, standard_error=reach / 2, low=value - reach, high=value + reach)


def _quality(random: Random, name: str, number: int) -> Quality:
    ratio = 1 + 0.001 * 1.4 ** (number % 12) * random.uniform(0.8, 1.2)
    kld = random.uniform(0.5, 2) * (ratio - 1)
    return Quality(
        name=name,
        artifact=random.randbytes(32).hex(),
        windows=64,
        perplexity=Perplexity(
            tokens=32704, nll=around(3.6, 0.3), perplexity=around(37.4 * ratio, 9), bits_per_byte=around(1.78, 0.1)
        ),
        log_perplexity_ratio=around(ratio - 1, (ratio - 1) / 3),
        perplexity_ratio=around(ratio, (ratio - 1) / 3),
        divergence=Divergence(
            mean=around(kld, kld / 9), median=around(kld / 2, kld / 9), p95=around(3 * kld, kld / 2),
            p99=around(7 * kld, kld), p999=around(15 * kld, kld), maximum=100 * kld,
            top1_agreement=around(1 - 3 * kld, kld / 9), delta_p_mean=around(-kld / 3, kld / 5),
            delta_p_rms=around(kld, kld / 9),
        ),
        greedy=Agreement(prompts=16, tokens=32, length=around(20, 6), identical=share(9, 16)),
        chat_template_agreement=1.0,
        bytes=random.randint(2_000_000, 60_000_000),
        bits_per_weight=random.uniform(3, 16),
        settings={"runtime": "a runtime 1.0", "attention": "sdpa", "dtype": "float32", "threads": "2"},
        repeats_to_the_bit=True,
        peak_rss_bytes=random.randint(10**8, 10**9),
    )  # fmt: skip


def _latency(random: Random, name: str, requests: int) -> Latency:
    levels = []
    for streams in SERVING.concurrency:
        clock, exchanges = 0.0, []
        for _ in range(requests):
            for _ in range(streams):
                chunks = [clock + random.uniform(0.005, 0.05)]
                for _ in range(SERVING.output_tokens - 1):
                    chunks.append(chunks[-1] + random.uniform(0.0003, 0.002))
                exchanges.append(
                    Exchange(
                        start_seconds=clock, chunk_seconds=tuple(chunks), end_seconds=chunks[-1] + 0.0001,
                        prompt_tokens=SERVING.prompt_tokens, completion_tokens=SERVING.output_tokens,
                    )
                )  # fmt: skip
            clock = max(one.end_seconds for one in exchanges)
        slo = Slo(ttft_seconds=SLO.ttft_seconds, tpot_seconds=SLO.tpot_seconds)
        levels.append(summarize(exchanges, concurrency=streams, slo=slo))
    rate = random.uniform(100, 5000)
    spread = Spread(median=rate, minimum=0.9 * rate, maximum=1.1 * rate)
    wait = Spread(median=1 / rate, minimum=0.9 / rate, maximum=1.1 / rate)
    return Latency(
        name=name, artifact="", load_seconds=0.04, ttft_seconds=wait, prefill_tokens_per_second=spread,
        decode_tokens_per_second=spread, peak_rss_bytes=random.randint(10**8, 10**9),
        served=Served(
            engine="llama_cpp", runtime="a runtime 1.0", slots=4, context_tokens=1024,
            prompt_tokens=SERVING.prompt_tokens, output_tokens=SERVING.output_tokens,
            load_seconds=random.uniform(1, 5), peak_rss_bytes=random.randint(10**8, 10**9), levels=tuple(levels),
        ),
    )  # fmt: skip


def _tasks(random: Random, name: str) -> Tasks:
    right = random.randint(200, 240)
    answers = Answers(metrics={}, outcomes=(Outcome(document="0", chosen="1", correct=True),))
    found = TaskAnswers(
        documents=400, accuracy=share(right, 400), flips=share(12, 400), right_to_wrong=3, wrong_to_right=4,
        p_value=1.0, answers=answers,
    )  # fmt: skip
    return Tasks(name=name, artifact="", tasks={"cloze": found})


def _build(random: Random, name: str, quality: Quality, latency: Latency) -> Build:
    assert quality.bytes is not None
    assert latency.served is not None
    return Build(
        artifact=quality.artifact,
        seconds=random.uniform(1, 100),
        peak_rss_bytes=random.randint(10**8, 10**9),
        tools={"a-tool": "1.2.3"},
        predicted=Predicted(
            bytes=round(1.01 * quality.bytes),
            # The first one's is far off.
            serving_bytes=round((1.4 if name.endswith("-0") else 0.9) * latency.served.peak_rss_bytes),
            build_bytes=2 * 10**9,
        ),
    )


CHECKPOINT = Checkpoint(
    source="models/of-a-test", revision=None, architecture="LlamaForCausalLM", dtype="bfloat16", parameters=6_819_072,
    vocabulary_size=4096, context_tokens=1024, files=(), digest="c" * 64,
)  # fmt: skip
SPLIT = Split(
    source="stdlib://evaluation", revision=None, documents=6, windows=64, tokens=32768, dropped_tokens=0,
    utf8_bytes=95631,
)  # fmt: skip
CORPUS = Corpus(
    checkpoint="c" * 64, window_tokens=512, prefix_id=1, calibration=SPLIT, evaluation=SPLIT, overlap=0.0001,
    files=tuple(File(path=f"{use}.npz", bytes=1, sha256=use[0] * 64) for use in ("calibration", "evaluation")),
    digest="d" * 64,
)  # fmt: skip
REFERENCE = Reference(
    checkpoint="c" * 64, evaluation="e" * 64, dtype="bfloat16",
    settings={"runtime": "transformers 5", "attention": "sdpa", "dtype": "bfloat16", "threads": "2"},
    perplexity=Perplexity(
        tokens=32704, nll=around(3.6, 0.3), perplexity=around(37.4, 9), bits_per_byte=around(1.78, 0.1)
    ),
    files=(), digest="f" * 64,
)  # fmt: skip
MACHINE = Machine(
    system="Linux", architecture="x86_64", cpu="A processor", cores=2, memory_gib=24, python="3.11.7",
    gpus=(Gpu(name="NVIDIA L4", compute_capability="8.9", memory_mib=23034, driver="570.10"),),
)  # fmt: skip
