"""What the stages write: frozen records, JSON in and out, unknown keys refused.

A record that is part of an artifact holds identity only: inputs by digest, the recipe, tool versions, files. Times,
hosts, peak memory and paths are provenance and go to `measurements/`.
"""

import json
import math
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evals.agreement import Agreement
from evals.answers import Answers
from evals.divergence import Divergence
from evals.load import Level
from evals.perplexity import Perplexity
from evals.statistics import Estimate
from pipeline.errors import StorageError

FILE = "assay.json"
"""The name of the record inside every folder that a stage writes."""


class Record(BaseModel):
    """A value with a JSON form. Equal records give equal bytes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_by_name=True, serialize_by_alias=True
    )

    def save(self, path: Path) -> None:
        """Write the record as indented JSON with a final newline, at once or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record; StorageError names the file when it is missing or is none of ours."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise StorageError(f"{path}: cannot be read ({error.strerror}); run `dvc repro` to make it") from error
        except ValidationError as error:
            raise StorageError(f"{path}: not a {cls.__name__} record: {error}") from error


class File(Record):
    """One file of a folder."""

    path: str
    bytes: int
    sha256: str


class Checkpoint(Record):
    """A checked Hugging Face checkpoint."""

    source: str
    """hf://org/name, or the folder as written in params.yaml."""
    revision: str | None
    """The commit that the asked-for revision resolved to; None for a folder."""
    architecture: str
    """The class named in config.json, such as LlamaForCausalLM."""
    dtype: str
    """The dtype most of the weights are stored in, such as bfloat16."""
    parameters: int
    vocabulary_size: int
    context_tokens: int
    """Longest sequence that the model was made for."""
    files: tuple[File, ...]
    digest: str
    """Over paths and sha256 of all files: the identity that artifacts refer to."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all safetensors files."""
        return sum(file.bytes for file in self.files if file.path.endswith(".safetensors"))


class Split(Record):
    """One side of a corpus."""

    source: str
    revision: str | None
    documents: int
    windows: int
    tokens: int
    """Tokens in the windows, prefix tokens included."""
    dropped_tokens: int
    """Tokens of document ends that filled no whole window, and of windows beyond the number asked for."""
    utf8_bytes: int


class Corpus(Record):
    """Windows for calibration and for evaluation, cut by the checkpoint's own tokenizer."""

    checkpoint: str
    """Digest of the checkpoint."""
    window_tokens: int
    prefix_id: int | None
    """The token before every window's text: BOS, else EOS, else none (then the first text token is unscored)."""
    calibration: Split
    evaluation: Split
    overlap: float
    """Share of the evaluation windows' runs of 13 words that also occur in the calibration windows."""
    files: tuple[File, ...]
    digest: str


class Sample(Record):
    """A text and the ids that the checkpoint's tokenizer gives it, without BOS or EOS."""

    text: str
    ids: tuple[int, ...]


class Message(Record):
    """One turn of a conversation."""

    role: str
    content: str


class Chat(Record):
    """A conversation and the ids that the checkpoint's chat template and tokenizer make of it."""

    name: str
    """What is awkward about it, for whoever reads that an artifact renders it differently."""
    messages: tuple[Message, ...]
    add_generation_prompt: bool
    ids: tuple[int, ...]


class Vocabulary(Record):
    """What the checkpoint's tokenizer does: the yardstick for each artifact's own tokenizer."""

    size: int
    special_ids: dict[str, int | None]
    """bos and eos."""
    added_tokens: dict[str, int]
    """Special and added tokens, found in a text before anything else of it is tokenized."""
    adds_bos: bool
    """BOS is put before plain text, unless asked not to."""
    chat_template: str | None
    samples: tuple[Sample, ...]
    chats: tuple[Chat, ...]
    """Empty without a chat template, and where it writes today's date (`reads_clock`): one corpus gives the same bytes
    on any day. A conversation that the template refuses is left out."""

    @property
    def reads_clock(self) -> bool:
        """True when the chat template writes today's date: then conversations are rendered when they are compared."""
        return self.chat_template is not None and "strftime_now" in self.chat_template


class Reference(Record):
    """The checkpoint itself, scored in its own dtype: what every artifact is compared with."""

    checkpoint: str
    """Digest."""
    evaluation: str
    """sha256 of the evaluation windows."""
    dtype: str
    settings: dict[str, str]
    """Of evals.runner.Runner."""
    perplexity: Perplexity
    files: tuple[File, ...]
    """nll.npy, float64 [windows, tokens - 1]; hidden.npy and the head (evals/head.py); greedy.npy, int32
    [prompts, tokens]."""
    digest: str


class Artifact(Record):
    """A built artifact, or the reason why there is none."""

    name: str
    recipe: dict[str, str | int | float | bool | None]
    checkpoint: str
    """Digest."""
    source: str | None = None
    """Digest of the artifact that this one was built from; None for those built from the checkpoint."""
    calibration: str
    """sha256 of the calibration windows."""
    unavailable: str | None = None
    """Why this artifact cannot exist, for this checkpoint or on this machine; then nothing below holds anything."""
    tools: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    parameters: int | None = None
    bits_per_weight: float | None = None
    chat_template_agreement: float | None = None
    """Share of the vocabulary's conversations that the artifact's own runtime turns into the same ids; None where the
    checkpoint has no chat template. A note names the first difference."""
    bytes: int | None = None
    """All files together: what a download costs."""
    files: tuple[File, ...] = ()
    digest: str
    """Over the files, or over the reason."""


class Predicted(Record):
    """What was computed for an artifact before it was built, from config.json and the weights' headers."""

    bytes: int | None = None
    """All files together."""
    serving_bytes: int | None = None
    """Main memory of gateway and engine under the load of params.serving: as Served.peak_rss_bytes. None on GPUs."""
    serving_gpu_bytes: int | None = None
    """Of all GPUs together: as Served.peak_gpu_bytes. None without."""
    build_bytes: int | None = None
    """Peak memory of the build's largest process, nothing being left of a sibling's build: at most as
    Build.peak_rss_bytes."""


class Build(Record):
    """Provenance of one artifact's build: what differs between machines and runs."""

    artifact: str
    seconds: float | None
    peak_rss_bytes: int | None
    """Largest resident set of any one process of the build."""
    device: str | None = None
    """What it was given to calibrate on, "cpu" or a GPU: where sums are rounded differently, bytes may differ too."""
    peak_gpu_bytes: int | None = None
    """Memory taken on all GPUs together, by every process; None where none was used."""
    tools: dict[str, str] = Field(default_factory=dict)
    """As in the artifact's record, and so are the notes: the report tells them, and needs no artifact for it."""
    notes: tuple[str, ...] = ()
    predicted: Predicted | None = None
    """None where nothing could be: a checkpoint or recipe that the arithmetic does not know."""


class Quality(Record):
    """One artifact's predictions on the evaluation windows, beside the reference's."""

    name: str
    artifact: str
    """Digest."""
    unavailable: str | None = None
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
    """Of evals.runner.Runner: what the numbers depend on beside weights and ids."""
    repeats_to_the_bit: bool | None = None
    """Whether the first window, scored again at the end, gave the same numbers to the last bit."""
    scores: str | None = None
    """sha256 of all per-token figures: equal for two runs that agree to the bit."""
    load_rss_bytes: int | None = None
    """Resident before loading: the interpreter and its libraries."""
    peak_rss_bytes: int | None = None
    """Of loading and scoring."""
    peak_gpu_bytes: int | None = None
    """Likewise, on all GPUs together; None where none was used."""


class ReferenceAnswers(Record):
    """What the checkpoint itself makes of the tasks, in its own dtype."""

    checkpoint: str
    """Digest."""
    dtype: str
    settings: dict[str, str] = Field(default_factory=dict)
    """Of evals.runner.Runner."""
    limit: int | None = None
    tasks: dict[str, Answers] = Field(default_factory=dict)


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
    settings: dict[str, str] = Field(default_factory=dict)
    """Of evals.runner.Runner."""
    limit: int | None = None
    tasks: dict[str, TaskAnswers] = Field(default_factory=dict)


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
    """Of each GPU: vLLM takes this much for weights and cache together, TensorRT-LLM of what the weights leave."""


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
    """Of one slot."""
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


class Latency(Record):
    """One artifact's speed: in process with one stream, the engine's own figures, and as served."""

    name: str
    artifact: str
    unavailable: str | None = None
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


class Gpu(Record):
    """One NVIDIA GPU, as its driver tells of it."""

    name: str
    compute_capability: str
    """Such as 9.0: engines and kernels are made for one."""
    memory_mib: int
    driver: str


class Machine(Record):
    """What latency depends on beside the artifact."""

    system: str
    architecture: str
    cpu: str
    cores: int
    """Logical CPUs this process may use."""
    memory_gib: int
    """Rounded, since what firmware and kernel keep for themselves changes with their versions."""
    python: str
    gpus: tuple[Gpu, ...] = ()

    # No kernel release and no host name: a reboot or a new container on the same machine keeps the figures.


class Hardware(Record):
    """What this machine lacks for one artifact: all that the artifact's stages depend on of the hardware."""

    name: str
    lacks: str | None
    """Such as "needs an NVIDIA GPU of compute capability 8.9 for fp8"; None where there is nothing in the way."""
    strict: bool = False
    """That is an error, rather than a row of the report that says so."""
    compute_capability: str | None = None
    """Of the GPU here, for an artifact that is bound to one; another GPU then builds it again."""


class Source(Record):
    """The state of one source: a digest of a local file or folder, None for a remote or built-in one."""

    source: str
    digest: str | None


class Sources(Record):
    """The state of the texts."""

    calibration: Source
    evaluation: Source


class Standing(Record):
    """One artifact's place in the ranking."""

    name: str
    rank: int | None
    """None for an artifact that does not pass every gate or is unavailable."""
    metrics: dict[str, Estimate | None]
    gates: tuple["Gate", ...] = ()
    unavailable: str | None = None
    pareto: bool = False
    """No other artifact is as good in bytes, perplexity and decode speed and better in one of them."""

    @property
    def missed(self) -> tuple["Gate", ...]:
        """The gates that it does not pass."""
        return tuple(gate for gate in self.gates if gate.verdict != "passes")


class Gate(Record):
    """One limit of selection.constraints and how one artifact stands to it."""

    metric: str
    relation: Literal["at_most", "at_least"]
    limit: float
    found: Estimate | None
    """None where it was not measured."""
    verdict: Literal["passes", "fails", "not enough data", "not measured"]
    """By the interval, where there is one: it lies within the limit, beyond it, or on both sides."""
    more: int | None = None
    """With not enough data, how many more windows (documents, prompts) would bring the interval to one side, should the
    value stay; None where no number would, the value being the limit."""


class Cost(Record):
    """What the price of a token rests on: every figure that went into it, to be printed beside it."""

    price_per_hour: float
    """In US dollars, of the whole machine."""
    source: str
    """Where the price is from: params.yaml, or an entry of pipeline/hardware.toml and what that names."""
    concurrency: int
    """Streams at which the tokens were counted."""
    hours_per_month: float
    api_price_per_million_tokens: float | None = None
    """What an API asks for as many output tokens; None where there is nothing to compare with."""
    assumptions: tuple[str, ...] = ()
    """One sentence each, for people."""


class Selection(Record):
    """The winner and why the others lost."""

    objective: dict[str, str]
    constraints: dict[str, dict[str, float | None]]
    winner: str | None
    ranking: tuple[Standing, ...]
    pareto_front: tuple[str, ...]
    cost: Cost | None = None
    """None where no price is known: then there are no metrics of cost either."""


class Revision(Record):
    """The state of the code that goes into an image, not of the repository around it."""

    commit: str | None
    """The last commit that touched it; None outside of a git repository."""
    dirty: bool
    """It has changes that are not committed."""


class Builders(Record):
    """What an image is built and started with here: a change brings images that could not be built before."""

    builder: str | None
    container: str | None
    base: str | None
    """ASSAY_BASE."""
    debootstrap: bool
    strict: bool


class Engine(Record):
    """The engine's image: base, runtime and Python packages, but no weights; or the reason why there is none."""

    name: str
    """llama_cpp, onnxruntime or transformers."""
    unavailable: str | None = None
    """What this machine lacks to build it, and the command that would help; then nothing below holds anything."""
    digest: str | None = None
    """Of the manifest."""
    base: str | None = None
    """Name of the base image, such as docker.io/library/python:3.11-slim-bookworm, or debootstrap."""
    base_digest: str | None = None
    builder: str | None = None
    """buildah, podman or docker, with its version."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """sha256 of everything that shapes the image: Containerfile, requirements, bases, sources."""
    bytes: int | None = None
    """All layers, as they are stored."""


class Layer(Record):
    """One layer of an image."""

    kind: Literal["engine", "weights", "code", "evidence"]
    digest: str
    bytes: int


class Image(Record):
    """The winner as an image, or the reason why there is none."""

    name: str
    """Repository name, such as assay-demo."""
    version: str
    """image.version, and what the code's repository stands at: 0.1.0+g1a2b3c4, with .dirty for uncommitted changes."""
    revision: str | None
    """The commit of this repository; None outside of one."""
    artifact: str
    artifact_digest: str
    unavailable: str | None = None
    engine: str | None = None
    """Digest of the engine's image."""
    base: str | None = None
    base_digest: str | None = None
    digest: str | None = None
    """Of the manifest: what is pushed, verified, signed and run."""
    bytes: int | None = None
    """Of all layers."""
    layers: tuple[Layer, ...] = ()
    notes: tuple[str, ...] = ()
    """What may surprise, such as a layer that is larger than some registries take."""


class Check(Record):
    """One thing that the running image was asked to prove."""

    name: str
    passed: bool
    found: str
    expected: str
    detail: str | None = None


class Verification(Record):
    """Whether the built image serves what was measured."""

    image: str | None
    """Digest of the manifest; None where there is no image."""
    checks: tuple[Check, ...] = ()
    unavailable: str | None = None
    """Why no image could be built or started here."""

    @property
    def green(self) -> bool:
        """True when the image was started and passed every check."""
        return self.unavailable is None and bool(self.checks) and all(check.passed for check in self.checks)


class Referrer(Record):
    """A document attached to an image in a registry."""

    artifact_type: str
    digest: str
    """Of its manifest."""


class Release(Record):
    """An image in a registry."""

    registry: str
    repository: str
    digest: str
    tag: str
    referrers: tuple[Referrer, ...]
    signed: bool
    unsigned_because: str | None = None
    bytes_sent: int
    """Of blobs; manifests are a few KB."""
    bytes_skipped: int
    """Of blobs that the repository held already."""


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces; raises on anything without one stable form, NaN and Infinity included."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} has no JSON form")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
