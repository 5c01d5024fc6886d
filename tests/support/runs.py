"""A finished run of a few artifacts without any model: records, and the figures of each token behind them.

`python -m tests.support.runs` writes one into the folder it is started in, as `run.yaml` there asks: a flow for tests
of what acts on finished runs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from evals.perplexity import Perplexity
from evals.statistics import Estimate, clustered_mean, exponential
from evals.tokens import Tokens
from pipeline import paths
from pipeline.metrics import METRICS
from pipeline.records import (
    FILE,
    Artifact,
    Checkpoint,
    Corpus,
    File,
    Latency,
    Quality,
    Reference,
    Selection,
    Split,
    Standing,
    Tasks,
)
from pipeline.stages.selection import gate

WINDOWS, TOKENS = 16, 64


@dataclass(frozen=True, kw_only=True)
class Made:
    """One artifact, by what it does to the text."""

    loss: float = 0.0
    """Mean increase of a token's nll over the reference, nats."""
    rate: float = 100.0
    """Output tokens/s, within 5 %."""
    noise: float = 0.01
    """The noise of one token's loss, nats."""
    content: bytes = b"weights"
    unavailable: str | None = None
    busy: str | None = None
    """What ran beside it while it was served, where that was too much."""
    least_rate: float | None = None
    """Limit on the rate."""


def tokens(made: Made, text: str = "text", reference: str = "reference") -> Tokens:
    """Make the figures of each token; of any two artifacts most is alike, as of two that read one text."""
    random = np.random.default_rng(0)
    nll = random.exponential(3.0, (WINDOWS, TOKENS))
    own = np.random.default_rng(int.from_bytes(hashlib.sha256(made.content).digest()[:4], "big"))
    loss = made.loss + made.noise * own.standard_normal((WINDOWS, TOKENS))
    return Tokens(
        nll=(nll + loss).astype(np.float32),
        kld=np.square(loss).astype(np.float32),
        same=own.random((WINDOWS, TOKENS)) > abs(made.loss),
        clusters=np.repeat(np.arange(WINDOWS // 2, dtype=np.int32), 2),
        greedy=np.arange(8, dtype=np.int32).reshape(2, 4),
        margins=own.random((2, 4), np.float32),
        text=text,
        reference=reference,
    )


def write(
    folder: Path, artifacts: Mapping[str, Made], winner: str | None = None, *, text: str = "text", machine: str = "here"
) -> None:
    """Write selection.json and the measurements of a run."""
    plain = tokens(Made(noise=0), text)
    standings = []
    for name, made in artifacts.items():
        if made.unavailable:
            standings.append(Standing(name=name, rank=None, metrics={}, unavailable=made.unavailable))
            continue
        found = tokens(made, text)
        (folder / paths.tokens(name)).parent.mkdir(parents=True, exist_ok=True)
        found.save(folder / paths.tokens(name))
        ratio = clustered_mean(found.nll.astype(np.float64) - plain.nll, plain.clusters)
        metrics: dict[str, Estimate | None] = {
            "perplexity": exponential(clustered_mean(found.nll.astype(np.float64), plain.clusters)),
            "perplexity_ratio": exponential(ratio),
            "log_perplexity_ratio": ratio,
            "kld_mean": clustered_mean(found.kld.astype(np.float64), plain.clusters),
            "bytes": Estimate(value=len(made.content)),
            "served_output_tokens_per_second": Estimate(value=made.rate, low=0.95 * made.rate, high=1.05 * made.rate),
        }
        rate, metric = metrics["served_output_tokens_per_second"], "served_output_tokens_per_second"
        limit = made.least_rate
        gates = () if limit is None else (gate(METRICS[metric], "at_least", limit, rate, 24, made.busy),)
        missed = any(one.verdict != "passes" for one in gates)
        standings.append(
            Standing(
                name=name,
                rank=None if missed else len(standings) + 1,
                metrics=metrics,
                gates=gates,
                disturbed={"served": made.busy} if made.busy else {},
            )
        )
        Latency(name=name, artifact="a", machine=machine).save(folder / paths.latency(name))
        Tasks(name=name, artifact="a").save(folder / paths.tasks(name))
    selection = Selection(
        objective={"metric": "bytes", "direction": "minimize"},
        constraints={"perplexity_ratio": {"at_most": 1.01, "at_least": None}},
        winner=winner or next((one.name for one in standings if one.rank), None),
        ranking=tuple(standings),
        pareto_front=(),
    )
    selection.save(folder / paths.SELECTION)


def write_artifact(folder: Path, name: str, files: Mapping[str, bytes], source: str = "models/demo") -> Artifact:
    """Write an artifact's folder, and the records of everything it comes from."""
    place = folder / paths.artifact(name)
    for path, content in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)
    listed = tuple(
        File(path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for path, content in files.items()
    )
    digest = hashlib.sha256(json.dumps([file.sha256 for file in listed]).encode()).hexdigest()
    artifact = Artifact(
        name=name,
        recipe={"backend": "gguf", "from": "checkpoint", "quantization": "Q4_K_M"},
        checkpoint="c" * 64,
        calibration="e" * 64,
        tools={"llama.cpp": "b1"},
        files=listed,
        digest=digest,
    )
    artifact.save(place / FILE)
    Quality(name=name, artifact=digest).save(folder / paths.quality(name))
    Checkpoint(
        source=source,
        revision=None,
        architecture="LlamaForCausalLM",
        dtype="bfloat16",
        parameters=1000,
        vocabulary_size=10,
        context_tokens=128,
        files=(),
        digest="c" * 64,
    ).save(folder / paths.CHECKPOINT / FILE)
    split = Split(
        source="book.txt",
        revision=None,
        documents=8,
        windows=WINDOWS,
        tokens=WINDOWS * TOKENS,
        dropped_tokens=0,
        utf8_bytes=9,
    )
    Corpus(
        checkpoint="c" * 64,
        window_tokens=TOKENS,
        prefix_id=1,
        calibration=split,
        evaluation=split,
        overlap=0.0,
        files=(),
        digest="e" * 64,
    ).save(folder / paths.CORPUS / FILE)
    one = Estimate(value=1.0)
    Reference(
        checkpoint="c" * 64,
        evaluation="text",
        dtype="bfloat16",
        settings={"runtime": "transformers"},
        perplexity=Perplexity(tokens=WINDOWS * (TOKENS - 1), nll=one, perplexity=one, bits_per_byte=one),
        files=(),
        digest="f" * 64,
    ).save(folder / paths.REFERENCE / FILE)
    return artifact


def main() -> None:
    """Write the run that run.yaml asks for, with a metrics file as the real flow has one."""
    wanted = yaml.safe_load(Path("run.yaml").read_text())["artifacts"]
    write(Path(), {name: Made(content=name.encode(), **made) for name, made in wanted.items()})
    Path("metrics.json").write_text(json.dumps(wanted))


if __name__ == "__main__":
    main()
