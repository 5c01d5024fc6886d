"""One answer: tokens from the engine, cut at stop strings, in pieces that a client may see."""

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from containers.engines.contract import Sampling, Token
from containers.gateway.metrics import Metrics
from containers.gateway.supervisor import Admission, Supervisor


class Delta(NamedTuple):
    """What an answer grows by."""

    text: str
    tokens: tuple[Token, ...]
    """Those whose text lies in `text`, or that have none."""
    made: int
    """Tokens that the model made, those of a stop string among them."""
    finish_reason: str | None = None
    """`stop` or `length`, with the last one."""


class Stops:
    """Keeps back text that could be the beginning of a stop string, with the tokens that it came in."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._text = ""
        self._tokens: list[Token] = []
        self._count = 0
        self.met = False

    def add(self, token: Token) -> Delta | None:
        """Take a token; return what may be shown now."""
        self._count += token.tokens
        self._text += token.text
        self._tokens.append(token)
        found = [at for stop in self._stops if (at := self._text.find(stop)) >= 0]
        if found:
            self.met = True
            return self._until(min(found))
        held = max((_overlap(self._text, stop) for stop in self._stops), default=0)
        return None if held else self.rest()

    def rest(self) -> Delta:
        """Return what was kept back."""
        return self._until(len(self._text))

    def _until(self, end: int) -> Delta:
        shown, at = [], 0
        for token in self._tokens:
            if at >= end and token.text:
                break
            shown.append(token)
            at += len(token.text)
        delta = Delta(self._text[:end], tuple(shown), self._count)
        self._text, self._tokens, self._count = "", [], 0
        return delta


async def answer(
    supervisor: Supervisor,
    admission: Admission,
    metrics: Metrics,
    prompt: Sequence[int],
    sampling: Sampling,
    stop: Sequence[str],
) -> AsyncGenerator[Delta, None]:
    """Yield an answer as it grows; the last delta says why it ended. Closing it cancels the work."""
    if sampling.max_tokens == 0:
        yield Delta("", (), 0, "length")
        return
    stops, made = Stops(stop), 0
    with metrics.answer(len(prompt)) as timed:
        async with admission.slot():
            async with contextlib.aclosing(supervisor.generate(prompt, sampling)) as tokens:
                async for token in tokens:
                    made += token.tokens
                    timed.token(token.tokens)
                    if (delta := stops.add(token)) is not None:
                        if stops.met:
                            yield delta._replace(finish_reason="stop")
                            return
                        yield delta
            yield stops.rest()._replace(finish_reason="length" if made >= sampling.max_tokens else "stop")


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
