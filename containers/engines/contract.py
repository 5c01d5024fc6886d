"""What the gateway asks of an engine: token ids in, tokens out.

Engines know no HTTP, no API and no keys; the gateway knows no format. All that a client may ask of sampling means the
same on every engine, so a seed, a temperature or a log-probability can be compared between artifacts.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class EngineError(Exception):
    """The engine died, hangs, or refuses what it said it could do."""


class UnsupportedError(Exception):
    """This engine cannot do what the request asks for; another one may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are picked."""

    max_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token, always."""
    top_p: float = 1.0
    """Draw from the smallest set of likeliest tokens whose probabilities sum to this."""
    seed: int | None = None
    """None draws a new one for each request."""
    candidates: int | None = None
    """Log-probabilities wanted: None for none, 0 for the picked token's, n for the n likeliest ones' as well."""
    ignore_eos: bool = False
    """Go on after end-of-sequence, for a fixed amount of work."""
    schema: Mapping[str, Any] | None = None
    """A JSON schema that the text must follow; engines without `Facts.schemas` refuse it."""


UNTOLD = -1


class Candidate(NamedTuple):
    """One token that could have come at a place."""

    id: int
    text: str
    logprob: float
    """Natural logarithm, at temperature 1, before top_p cuts anything off."""


class Token(NamedTuple):
    """One token that came."""

    id: int
    """UNTOLD for an answer's last tokens if they leave a character incomplete and the runtime does not tell them."""
    text: str
    """What the client may see now; empty while bytes of a character are missing, which then come with a later token."""
    logprob: float | None = None
    candidates: tuple[Candidate, ...] = ()
    """Likeliest first; their texts are whole tokens, not parts of a stream."""
    tokens: int = 1
    """How many this one stands for: some runtimes tell only of the last of those that make up one character."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a started engine."""

    runtime: str
    """Name and version."""
    context_tokens: int
    """Prompt and answer of one request together."""
    vocabulary_size: int
    bos_id: int | None
    eos_id: int | None
    slots: int
    """Requests that advance together; more have to wait."""
    schemas: bool
    """Whether answers can be held to a JSON schema."""


class Engine(Protocol):
    """One artifact, loaded and ready to answer. Started once at a time; after `stop` it may be started again."""

    async def start(self) -> Facts:
        """Load the artifact. Raises EngineError with the runtime's own words when it does not come up."""
        ...

    async def stop(self) -> None:
        """End at once whatever is running, and free everything. Safe to call twice."""
        ...

    async def died(self) -> str:
        """Return, once the engine has ended by itself, why."""
        ...

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Token, None]:
        """Yield tokens as they come, end-of-sequence not among them: fewer than max_tokens mean that it came.

        Closing the generator cancels the request and frees its slot. Raises EngineError when the engine dies.
        """
        ...

    async def score(self, ids: Sequence[int], candidates: int) -> list[Token]:
        """Return every token but the first with its log-probability given all before it, and the likeliest ones there.

        The first has none. The figures are those of evaluation: the same code scores both.
        """
        ...

    async def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Return a text's ids; with `add_special`, BOS is put first where the artifact says so."""
        ...

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        ...

    async def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> list[int]:
        """Return the ids of a conversation through the artifact's own chat template.

        Raises UnsupportedError with the template's words when there is none or it refuses.
        """
        ...
