"""Stand-ins at the edges: a runner with known logits, an engine with known answers."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from containers.engines.contract import Candidate, EngineError, Facts, Sampling, Token
from evals.runner import Ids, Logits, Prompt
from evals.windows import Windows


@dataclass
class TableRunner:
    """A bigram model: row t of `table` holds the logits after token t, so every number can be worked out by hand."""

    table: Logits
    block_rows: int = 3

    @property
    def settings(self) -> Mapping[str, str]:
        return {"runtime": "a table"}

    def logits(self, ids: Ids) -> Iterator[Logits]:
        rows = self.table[ids[:-1]]
        for start in range(0, len(rows), self.block_rows):
            yield rows[start : start + self.block_rows]

    def continuations(self, prompts: Sequence[Prompt]) -> Iterator[Logits]:
        for prompt, several in prompts:
            for ids in several:
                yield self.table[np.concatenate([prompt[-1:], ids[:-1]])]

    def generate(self, prompt: Ids, new_tokens: int) -> Iterator[int]:
        token = int(prompt[-1])
        for _ in range(new_tokens):
            token = int(self.table[token].argmax())
            yield token


def windows(ids: list[list[int]], document: list[int] | None = None, utf8_bytes: list[int] | None = None) -> Windows:
    """Make windows from plain lists."""
    count = len(ids)
    return Windows(
        ids=np.array(ids, dtype=np.int32),
        document=np.array(document or range(count), dtype=np.int32),
        utf8_bytes=np.array(utf8_bytes or [4 * (len(row) - 1) for row in ids], dtype=np.int64),
    )


@dataclass(kw_only=True)
class FakeEngine:
    """An engine that says the same tokens to everybody; a prompt's bytes are its ids.

    Its switches are plain values, looked at every few milliseconds, so that a test may turn them from another thread
    than the server's.
    """

    tokens: Sequence[str] = ("One", ", two", ", three", ".")
    """The answer; after its last token comes end-of-sequence, or, with `ignore_eos`, the first one again."""
    delay_seconds: float = 0.0
    """Before each token."""
    slots: int = 2
    context_tokens: int = 256
    schemas: bool = True

    start_error: str | None = None
    """Makes `start` fail."""
    generate_error: str | None = None
    """Makes every answer fail at its next token, the engine staying up."""
    hanging: bool = False
    """No answer gets another token while this is set, ..."""
    hanging_after: int = 0
    """... but for its first ones, as many as this."""

    starts: int = 0
    stops: int = 0
    running: int = 0
    most_running: int = 0
    finished: int = 0
    cancelled: int = 0
    """Answers that were closed by the gateway before their end; those that failed are not among them."""
    prompts: list[list[int]] = field(default_factory=list)
    """All that was asked, the gateway's own probes included, in order."""
    samplings: list[Sampling] = field(default_factory=list)

    BOS: ClassVar[int] = 256
    EOS: ClassVar[int] = 257
    POLL_SECONDS: ClassVar[float] = 0.002

    def __post_init__(self) -> None:
        self._gone: str | None = "was never started"

    def die(self, why: str = "was told to die") -> None:
        """End as a child process does that was killed: answers fail, and it stays dead until it is started."""
        self._gone = why

    async def start(self) -> Facts:
        self.starts += 1
        if self.start_error is not None:
            raise EngineError(self.start_error)
        self._gone = None
        return Facts(
            runtime="fake 1.0",
            context_tokens=self.context_tokens,
            vocabulary_size=self.EOS + 1 + len(self.tokens),
            bos_id=self.BOS,
            eos_id=self.EOS,
            slots=self.slots,
            schemas=self.schemas,
        )

    async def stop(self) -> None:
        self.stops += 1
        self._gone = "was stopped"

    async def died(self) -> str:
        while self._gone is None:
            await asyncio.sleep(self.POLL_SECONDS)
        return self._gone

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Token, None]:
        self.prompts.append(list(prompt))
        self.samplings.append(sampling)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        life = self.starts
        try:
            count = sampling.max_tokens if sampling.ignore_eos else min(len(self.tokens), sampling.max_tokens)
            for number in range(count):
                await self._until_next(number, life)
                yield self._token(number % len(self.tokens), sampling.candidates)
            self.finished += 1
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def score(self, ids: Sequence[int], candidates: int) -> list[Token]:
        """Each place is an eighth of a nat less likely than the one before; the likeliest token is always "!"."""
        best = (Candidate(ord("!"), "!", -1 / 16),)[:candidates]
        first, *rest = ids
        scored = [Token(id_, self._text([id_]), -number / 8, best) for number, id_ in enumerate(rest, 1)]
        return [Token(first, self._text([first])), *scored]

    async def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return [self.BOS] * add_special + list(text.encode())

    async def detokenize(self, ids: Sequence[int]) -> str:
        return self._text(ids)

    async def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> list[int]:
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return [self.BOS, *"".join([*lines, "assistant: " * add_generation_prompt]).encode()]

    async def _until_next(self, number: int, life: int) -> None:
        """Wait as long as the next token takes; EngineError when there will be none."""
        until = time.monotonic() + self.delay_seconds
        while self._gone is None and self.starts == life and (self._hangs(number) or time.monotonic() < until):
            await asyncio.sleep(min(self.POLL_SECONDS, self.delay_seconds or self.POLL_SECONDS))
        if self._gone is not None or self.starts != life:
            raise EngineError(f"the engine {self._gone or 'was started again'}")
        if self.generate_error is not None:
            raise EngineError(self.generate_error)
        await asyncio.sleep(0)

    def _hangs(self, number: int) -> bool:
        return self.hanging and number >= self.hanging_after

    def _token(self, number: int, candidates: int | None) -> Token:
        id_, text = self.EOS + 1 + number, self.tokens[number]
        if candidates is None:
            return Token(id_, text)
        likeliest = (Candidate(id_, text, -0.25), Candidate(ord("!"), "!", -2.0))
        return Token(id_, text, -0.25, likeliest[:candidates])

    def _text(self, ids: Sequence[int]) -> str:
        words = [bytes([byte]) for byte in range(self.BOS)] + [b"<s>", b"</s>"] + [one.encode() for one in self.tokens]
        return b"".join(words[id_] for id_ in ids).decode(errors="replace")
