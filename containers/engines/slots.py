"""What a Python runtime must offer so that requests advance together, and the loop that advances them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from containers.engines.contract import Sampling
from containers.engines.sampling import Sampler, likeliest
from evals.runner import Ids, Logits

FEED_TOKENS = 256
"""Prompt tokens that go in between two steps: a long prompt then delays the other requests' tokens by little."""


class Slots(Protocol):
    """A model's key-value cache as `count` sequences that know nothing of each other."""

    @property
    def count(self) -> int:
        """Sequences that can advance together."""
        ...

    def feed(self, slot: int, ids: Ids) -> Logits:
        """Append ids, at least one, to a slot's sequence; return the logits after the last, [vocabulary]."""
        ...

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> Logits:
        """Append one id to each of several slots, in one pass through the weights; return [len(slots), vocabulary].

        What a slot gets does not depend on the slots beside it, but for the last bits of sums in another order.
        """
        ...

    def clear(self, slot: int) -> None:
        """Forget a slot's sequence."""
        ...


@dataclass(slots=True)
class _Running:
    prompt: Ids
    sampling: Sampling
    sampler: Sampler
    slot: int
    fed: int = 0
    made: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One token of one request."""

    key: int
    id: int
    logprob: float | None
    candidates: list[tuple[int, float]]
    last: bool


class Batch:
    """Requests in slots, advanced one round at a time. More requests than slots wait in the order they came."""

    def __init__(self, slots: Slots, eos_ids: frozenset[int]) -> None:
        self._slots = slots
        self._eos_ids = eos_ids
        self._free = list(reversed(range(slots.count)))
        self._waiting: dict[int, tuple[Ids, Sampling]] = {}
        self._running: dict[int, _Running] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, key: int, prompt: Ids, sampling: Sampling) -> None:
        """Take a request; `key` is the caller's name for it."""
        self._waiting[key] = (prompt, sampling)

    def cancel(self, key: int) -> None:
        """Forget a request and free its slot; one that has ended already is no error."""
        self._waiting.pop(key, None)
        if (running := self._running.pop(key, None)) is not None:
            self._slots.clear(running.slot)
            self._free.append(running.slot)

    def round(self) -> Iterator[Made | int]:
        """Feed some of the oldest unfinished prompt, then give every request that has begun its next token.

        A bare key says that a request ended without a token: end-of-sequence came.
        """
        while self._waiting and self._free:
            key = next(iter(self._waiting))
            prompt, sampling = self._waiting.pop(key)
            self._running[key] = _Running(prompt, sampling, Sampler(sampling), self._free.pop())
        decoding = [key for key, one in self._running.items() if one.made]
        feeding = next((key for key, one in self._running.items() if one.fed < len(one.prompt)), None)
        if feeding is not None:
            yield from self._feed(feeding)
        if decoding:
            running = [self._running[key] for key in decoding]
            rows = self._slots.step([one.slot for one in running], [one.made[-1] for one in running])
            for key, row in zip(decoding, rows, strict=True):
                yield from self._take(key, row)

    def _feed(self, key: int) -> Iterator[Made | int]:
        one = self._running[key]
        part = one.prompt[one.fed : one.fed + FEED_TOKENS]
        row = self._slots.feed(one.slot, part)
        one.fed += len(part)
        if one.fed == len(one.prompt):
            yield from self._take(key, row)

    def _take(self, key: int, row: Logits) -> Iterator[Made | int]:
        one = self._running[key]
        if not np.isfinite(row.max()):
            raise ValueError("the model gave logits that are not finite")
        picked = one.sampler.pick(row)
        if picked in self._eos_ids and not one.sampling.ignore_eos:
            self.cancel(key)
            yield key
            return
        wanted = one.sampling.candidates
        logprob, candidates = (None, []) if wanted is None else likeliest(row, picked, wanted)
        one.made.append(picked)
        last = len(one.made) == one.sampling.max_tokens
        if last:
            self.cancel(key)
        yield Made(key=key, id=picked, logprob=logprob, candidates=candidates, last=last)
