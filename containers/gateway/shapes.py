"""OpenAI's objects, written by hand: one is made for every token, and validating it would cost more than the token."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from containers.engines.contract import UNTOLD, Token

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What all objects of one answer have in common."""

    kind: str
    """`text_completion` or `chat.completion`."""
    prefix: str
    model: str
    fingerprint: str
    """Identifies the artifact, so that a client sees when another one answers."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def object(self, choices: Sequence[dict[str, Any]], *, chunk: bool = False, **more: Any) -> dict[str, Any]:
        """Put choices into the object that a client reads."""
        kind = "chat.completion.chunk" if chunk and self.kind == "chat.completion" else self.kind
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
            **more,
        }


def event(value: dict[str, Any]) -> bytes:
    """Write one server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Count tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def token_ids(tokens: Sequence[Token]) -> list[int | None]:
    """List ids; None for those that the runtime did not tell, of parts of a character."""
    ids: list[int | None] = []
    for token in tokens:
        ids += [None] * (token.tokens - 1) + [None if token.id == UNTOLD else token.id]
    return ids


def completion_logprobs(tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    """Write the older form, of /v1/completions; `offset` is where the first token's text begins.

    The token that came is among its own candidates, with the very same number: clients compare the two to tell whether
    it was the likeliest.
    """
    offsets: list[int] = []
    top: list[dict[str, float] | None] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
        if token.logprob is None:
            top.append(None)
            continue
        candidates = {}
        for candidate in reversed(token.candidates):  # of two with one text, the likelier stays
            candidates[candidate.text] = token.logprob if candidate.id == token.id else candidate.logprob
        if all(candidate.id != token.id for candidate in token.candidates):
            candidates.setdefault(token.text, token.logprob)
        top.append(candidates)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": top,
        "text_offset": offsets,
    }


def chat_logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    """Write the newer form, of /v1/chat/completions."""
    return {
        "content": [
            {**_named(token.text, token.logprob), "top_logprobs": [_named(c.text, c.logprob) for c in token.candidates]}
            for token in tokens
        ],
        "refusal": None,
    }


def _named(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
