"""The checkpoint, the texts, and what the checkpoint itself makes of them."""

from pydantic import Field

from evals.answers import Answers
from evals.perplexity import Perplexity
from pipeline.records.base import File, Record


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
    end_ids: tuple[int, ...] = ()
    """Tokens that end an answer."""
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
    """What the checkpoint's tokenizer does: the reference for each artifact's own tokenizer."""

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
    """Settings of the evals.runner.Runner."""
    perplexity: Perplexity
    files: tuple[File, ...]
    """nll.npy, float64 [windows, tokens - 1]; hidden.npy and the head (evals/head.py); greedy.npy, int32
    [prompts, tokens]."""
    digest: str


class ReferenceAnswers(Record):
    """What the checkpoint itself makes of the tasks, in its own dtype."""

    checkpoint: str
    """Digest."""
    dtype: str
    settings: dict[str, str] = Field(default_factory=dict)
    """Settings of the evals.runner.Runner."""
    limit: int | None = None
    tasks: dict[str, Answers] = Field(default_factory=dict)
    impossible: dict[str, str] = Field(default_factory=dict)
    """Why a task cannot be asked of this checkpoint, or made of this text, by task."""
