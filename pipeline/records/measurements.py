"""What was found out about one artifact."""

from typing import Literal

from pydantic import Field

from evals import interference
from evals.agreement import Agreement
from evals.answers import Answers
from evals.divergence import Divergence
from evals.interference import Watched
from evals.load import Level
from evals.perplexity import Perplexity
from evals.statistics import Estimate
from pipeline.records.base import Failure, Record


class Quality(Record):
    """One artifact's predictions on the evaluation windows, beside the reference's."""

    name: str
    artifact: str
    """Digest."""
    unavailable: str | None = None
    failure: Failure | None = None
    windows: int | None = None
    perplexity: Perplexity | None = None
    log_perplexity_ratio: Estimate | None = None
    """ln(perplexity / the reference's), paired token by token."""
    perplexity_ratio: Estimate | None = None
    divergence: Divergence | None = None
    """Over the whole vocabulary: exact, not a lower bound from the likeliest tokens."""
    greedy: Agreement | None = None
    chat_template_agreement: float | None = None
    bytes: int | None = None
    bits_per_weight: float | None = None
    settings: dict[str, str] = Field(default_factory=dict)
    """Settings of the evals.runner.Runner: what the numbers depend on beside weights and ids."""
    repeats_to_the_bit: bool | None = None
    """Whether the first window, scored again at the end, gave the same numbers to the last bit."""
    scores: str | None = None
    """sha256 of all per-token figures: equal for two runs that agree to the bit."""
    load_rss_bytes: int | None = None
    """Resident before loading: the interpreter and its libraries."""
    peak_rss_bytes: int | None = None
    """Peak of loading and scoring."""
    peak_gpu_bytes: int | None = None
    """Likewise, on all GPUs together; None where none was used."""


class TaskAnswers(Record):
    """One task, answered by an artifact."""

    documents: int
    accuracy: Estimate | None
    """None for a task without right and wrong."""
    flips: Estimate | None
    """Share of documents whose chosen answer is not the reference's; None where nothing is chosen."""
    right_to_wrong: int
    wrong_to_right: int
    p_value: float
    """McNemar's exact test against the reference."""
    answers: Answers


class Tasks(Record):
    """One artifact's answers to the tasks of params.yaml."""

    name: str
    artifact: str
    """Digest."""
    unavailable: str | None = None
    failure: Failure | None = None
    settings: dict[str, str] = Field(default_factory=dict)
    """Settings of the evals.runner.Runner."""
    limit: int | None = None
    tasks: dict[str, TaskAnswers] = Field(default_factory=dict)
    impossible: dict[str, str] = Field(default_factory=dict)
    """Why a task cannot be asked, of the reference neither, by task."""


class Spread(Record):
    """A sample's middle and its extremes; the raw values lie beside it."""

    median: float
    minimum: float
    maximum: float


class Timing(Record):
    """Raw times of one repeat."""

    ttft_seconds: float
    itl_seconds: tuple[float, ...]


EngineName = Literal["llama_cpp", "onnxruntime", "transformers", "vllm", "tensorrt_llm"]
"""A kind of engine; which one serves an artifact is for its recipe and the machine to decide."""


class Placement(Record):
    """How vLLM and TensorRT-LLM lay an artifact out on GPUs; other engines need not be told."""

    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share each layer. A TensorRT-LLM engine has its recipe's."""
    gpu_memory_fraction: float = Field(default=0.9, gt=0, le=1)
    """The share of each GPU: vLLM takes this much for weights and cache together, TensorRT-LLM of what the weights
    leave."""


class Served(Record):
    """One artifact's speed as clients get it: its engine behind the gateway on loopback, under load."""

    engine: EngineName
    """What an image has to run, for these figures to be its own."""
    placement: Placement | None = None
    """None where the engine takes none."""
    runtime: str
    """The engine's name and version."""
    slots: int
    """Requests that the engine advances together."""
    context_tokens: int
    """The context of one slot."""
    prompt_tokens: int
    output_tokens: int
    load_seconds: float
    """From starting the gateway to its first token."""
    peak_rss_bytes: int
    """The gateway's and its engine's processes' largest resident sets, added up."""
    peak_gpu_bytes: int | None = None
    """On all GPUs together, by every process; None where none was used."""
    levels: tuple[Level, ...]
    """One for each concurrency; raw times beside the figures."""

    def at(self, concurrency: int) -> Level | None:
        """Return the level of so many streams, if it was measured."""
        return next((level for level in self.levels if level.concurrency == concurrency), None)


LOAD, IN_PROCESS, SERVED_LOAD, SERVED = "load", "in process", "served load", "served"

PARTS = (LOAD, IN_PROCESS, SERVED_LOAD, SERVED)
"""Parts of a latency measurement, each watched by itself."""


def level(streams: int) -> str:
    """Name the part of SERVED that is one number of streams."""
    return f"{SERVED}, {streams} at a time"


class Latency(Record):
    """One artifact's speed: in process with one stream, the engine's own figures, and as served."""

    name: str
    artifact: str
    unavailable: str | None = None
    failure: Failure | None = None
    machine: str | None = None
    """Digest of the machine's fingerprint."""
    threads: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    load_seconds: float | None = None
    ttft_seconds: Spread | None = None
    prefill_tokens_per_second: Spread | None = None
    decode_tokens_per_second: Spread | None = None
    peak_rss_bytes: int | None = None
    peak_gpu_bytes: int | None = None
    samples: tuple[Timing, ...] = ()
    served: Served | None = None
    watched: dict[str, Watched] = Field(default_factory=dict)
    """What else ran, by part: LOAD, IN_PROCESS, SERVED_LOAD, and a level's name for each number of streams."""

    def disturbed(self, streams: int) -> dict[str, str]:
        """Say of each part beside which too much else ran what that was; of the served levels, of this one."""
        names = {part: level(streams) if part == SERVED else part for part in PARTS}
        found = {
            part: interference.problems(self.watched[name].interference)
            for part, name in names.items()
            if name in self.watched
        }
        return {part: "; ".join(problems) for part, problems in found.items() if problems}
