"""An ONNX folder as a Runner, whichever exporter wrote it."""

import collections.abc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np

from evals.runner import Ids, Logits, Prompt
from pipeline.backends.onnx.decoder import Decoder, Sequence
from pipeline.backends.onnx.optimum.decoder import GrowingDecoder, GrowingSequence
from pipeline.compute import Compute
from pipeline.errors import MeasurementError

BLOCK_BYTES = 256 * 2**20
"""Float32 logits made at once: with 150,000 tokens of vocabulary, 447 rows."""


class OnnxRunner:
    """Scores and generates one sequence at a time on a loaded model."""

    def __init__(self, decoder: Decoder | GrowingDecoder, compute: Compute) -> None:
        self.decoder = decoder
        self._compute = compute
        self._rows = max(1, BLOCK_BYTES // (4 * decoder.vocabulary_size))
        self._sequence: Sequence | GrowingSequence | None = None

    @property
    def settings(self) -> Mapping[str, str]:
        """See Runner.settings."""
        return {
            "runtime": f"onnxruntime {version('onnxruntime')}",
            "attention": self.decoder.attention,
            "dtype": "float32",
            "device": "cpu",
            "threads": str(self._compute.threads),
        }

    def logits(self, ids: Ids) -> Iterator[Logits]:
        """See Runner.logits."""
        yield from self._append(self._begin(len(ids)), ids[:-1])

    def continuations(self, prompts: collections.abc.Sequence[Prompt]) -> Iterator[Logits]:
        """See Runner.continuations."""
        for prompt, several in prompts:
            sequence, first = self._prompt(prompt, len(prompt) + max(map(len, several)) - 1)
            mark = sequence.mark()
            for ids in several:
                sequence.back(mark)
                yield np.concatenate([first, *(block.copy() for block in self._append(sequence, ids[:-1]))])

    def generate(self, prompt: Ids, new_tokens: int) -> Iterator[int]:
        """See Runner.generate."""
        sequence, row = self._prompt(prompt, len(prompt) + new_tokens)
        for remaining in range(new_tokens, 0, -1):
            token = int(row.argmax())
            yield token
            if remaining > 1:
                (row,) = self._append(sequence, np.array([token], np.int32))

    def close(self) -> None:
        """Free the key-value cache."""
        self._sequence = None

    def _prompt(self, prompt: Ids, room: int) -> tuple[Sequence | GrowingSequence, Logits]:
        """Start a sequence with room for `room` tokens by the prompt; add the row that predicts the next token."""
        sequence = self._begin(room)
        (*_, last) = (block[-1:].copy() for block in self._append(sequence, prompt))
        return sequence, last

    def _begin(self, tokens: int) -> Sequence | GrowingSequence:
        """Start an empty sequence with room for `tokens`."""
        if tokens > self.decoder.context_tokens:
            raise MeasurementError(
                f"{self.decoder.folder}: {tokens} tokens asked for, the model was made for "
                f"{self.decoder.context_tokens}; lower corpus.window_tokens or latency's token counts in params.yaml"
            )
        if self._sequence is None or self._sequence.capacity < tokens:
            self.close()
            self._sequence = self.decoder.sequence(tokens)
        self._sequence.clear()
        return self._sequence

    def _append(self, sequence: Sequence | GrowingSequence, ids: Ids) -> Iterator[Logits]:
        """Feed ids in blocks whose logits stay within BLOCK_BYTES; yield those of each, [tokens, vocabulary]."""
        for start in range(0, len(ids), self._rows):
            yield sequence.append(ids[start : start + self._rows])


@contextmanager
def runner(decoder: type[Decoder] | type[GrowingDecoder], folder: Path, compute: Compute) -> Iterator[OnnxRunner]:
    """Load an artifact; MeasurementError when it is damaged."""
    opened = OnnxRunner(decoder(folder, compute), compute)
    try:
        yield opened
    finally:
        opened.close()
