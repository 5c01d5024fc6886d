"""An onnxruntime-genai folder as a Runner."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np

from evals.runner import Ids, Logits, Prompt
from pipeline.backends.onnx.decoder import Cache, Decoder
from pipeline.compute import Compute
from pipeline.errors import MeasurementError

BLOCK_BYTES = 256 * 2**20
"""Float32 logits made at once: with 150,000 tokens of vocabulary, 447 rows."""


class OnnxRunner:
    """Scores and generates one sequence at a time on a loaded model."""

    def __init__(self, decoder: Decoder, compute: Compute) -> None:
        self.decoder = decoder
        self._compute = compute
        self._rows = max(1, BLOCK_BYTES // (4 * decoder.vocabulary_size))
        self._cache: Cache | None = None
        self._length = 0

    @property
    def settings(self) -> Mapping[str, str]:
        """See Runner.settings."""
        return {
            "runtime": f"onnxruntime {version('onnxruntime')}",
            "attention": "GroupQueryAttention",
            "dtype": "float32",
            "device": "cpu",
            "threads": str(self._compute.threads),
        }

    def logits(self, ids: Ids) -> Iterator[Logits]:
        """See Runner.logits."""
        self._begin(len(ids))
        yield from self._append(ids[:-1])

    def continuations(self, prompts: Sequence[Prompt]) -> Iterator[Logits]:
        """See Runner.continuations."""
        for prompt, several in prompts:
            first = self._prompt(prompt, len(prompt) + max(map(len, several)) - 1)
            for ids in several:
                self._length = len(prompt)
                yield np.concatenate([first, *(block.copy() for block in self._append(ids[:-1]))])

    def generate(self, prompt: Ids, new_tokens: int) -> Iterator[int]:
        """See Runner.generate."""
        row = self._prompt(prompt, len(prompt) + new_tokens)
        for remaining in range(new_tokens, 0, -1):
            token = int(row.argmax())
            yield token
            if remaining > 1:
                (row,) = self._append(np.array([token], np.int32))

    def close(self) -> None:
        """Free the key-value cache."""
        self._cache = None

    def _prompt(self, prompt: Ids, room: int) -> Logits:
        """Start a sequence with room for `room` tokens by the prompt; return the row that predicts the next token."""
        self._begin(room)
        (*_, last) = (block[-1:].copy() for block in self._append(prompt))
        return last

    def _begin(self, tokens: int) -> None:
        """Start an empty sequence with room for `tokens`."""
        if tokens > self.decoder.context_tokens:
            raise MeasurementError(
                f"{self.decoder.folder}: {tokens} tokens asked for, the model was made for "
                f"{self.decoder.context_tokens}; lower corpus.window_tokens or latency's token counts in params.yaml"
            )
        if self._cache is None or self._cache.capacity < tokens:
            self.close()
            self._cache = Cache(self.decoder, 1, tokens)
        self._length = 0

    def _append(self, ids: Ids) -> Iterator[Logits]:
        """Feed ids in blocks whose logits stay within BLOCK_BYTES; yield those of each, [tokens, vocabulary]."""
        assert self._cache is not None
        for start in range(0, len(ids), self._rows):
            part = ids[start : start + self._rows]
            logits = self._cache.append(0, part[None], [self._length])
            self._length += len(part)
            yield logits[0]


@contextmanager
def runner(folder: Path, compute: Compute) -> Iterator[OnnxRunner]:
    """Load an artifact; MeasurementError when it is damaged."""
    opened = OnnxRunner(Decoder(folder, compute), compute)
    try:
        yield opened
    finally:
        opened.close()
