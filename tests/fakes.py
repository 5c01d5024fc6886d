"""Stand-ins at the edges: a runner with known logits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
