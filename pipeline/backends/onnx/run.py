"""An onnxruntime-genai folder as a Runner."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from evals.runner import Ids, Logits, Prompt
from pipeline.backends.onnx import genai
from pipeline.errors import MeasurementError

BLOCK_BYTES = 256 * 2**20
"""Float32 logits made at once: with 150,000 tokens of vocabulary, 447 rows."""


class OnnxRunner:
    """Scores and generates on one loaded model.

    One Generator is kept: it owns the key-value cache, allocated whole for its `max_length`, and making one costs tens
    of milliseconds. The Generator only ever appends; its own sampling would stop at end-of-sequence, and setting a
    minimum length instead would forbid that token rather than pass it.
    """

    def __init__(self, model: Any, folder: Path, threads: int) -> None:
        self._og = genai.library()
        self._model = model
        self._folder = folder
        self._threads = threads
        section = genai.settings(folder)["model"]
        self._longest = int(section["context_length"])
        self._rows = max(1, BLOCK_BYTES // (4 * int(section["vocab_size"])))
        # A cache that keeps only the last positions of sliding-window layers cannot go back to the first.
        window = section["decoder"].get("sliding_window")
        self._rewinds = window is None
        self._least = min(int(window["window_size"]), self._longest) if window else 1
        """Capacity below which onnxruntime refuses to run."""
        self._generator: Any = None
        self._capacity = 0

    @property
    def settings(self) -> Mapping[str, str]:
        """See Runner.settings."""
        return {
            "runtime": f"onnxruntime-genai {version('onnxruntime-genai')}, onnxruntime {version('onnxruntime')}",
            "attention": "GroupQueryAttention",
            "dtype": "float32",
            "threads": str(self._threads),
        }

    def logits(self, ids: Ids) -> Iterator[Logits]:
        """See Runner.logits."""
        self._begin(len(ids))
        for _ in self._append(ids[:-1]):
            # Logits of the tokens of the last append only, shape [1, rows, vocabulary].
            yield self._generator.get_output("logits")[0]

    def continuations(self, prompts: Sequence[Prompt]) -> Iterator[Logits]:
        """See Runner.continuations."""
        for prompt, several in prompts:
            yield from self._continue(prompt, several)

    def _continue(self, prompt: Ids, continuations: Sequence[Ids]) -> Iterator[Logits]:
        """Score one after the other: a Generator for several sequences cannot go back."""
        room = len(prompt) + max(map(len, continuations)) - 1
        first, at_end = self._prompt(prompt, room), True
        for ids in continuations:
            rows = [first]
            if len(ids) > 1:
                if not at_end and self._rewinds:
                    self._generator.rewind_to(len(prompt))
                elif not at_end:
                    self._prompt(prompt, room)
                rows += [self._generator.get_output("logits")[0] for _ in self._append(ids[:-1])]
                at_end = False
            yield np.concatenate(rows)

    def _prompt(self, prompt: Ids, room: int) -> Logits:
        """Start a sequence with room for `room` tokens by the prompt; return the row that predicts the next token."""
        self._begin(room)
        for _ in self._append(prompt):
            pass
        last: Logits = self._generator.get_logits()[0, -1:].copy()
        return last

    def generate(self, prompt: Ids, new_tokens: int) -> Iterator[int]:
        """See Runner.generate."""
        logits = self._prompt(prompt, len(prompt) + new_tokens)
        for remaining in range(new_tokens, 0, -1):
            token = int(logits[0].argmax())
            yield token
            if remaining > 1:
                self._generator.append_tokens(np.array([token], np.int32))
                logits = self._generator.get_logits()[0]

    def close(self) -> None:
        """Free the key-value cache."""
        self._generator = None
        self._capacity = 0

    def _begin(self, tokens: int) -> None:
        """Start an empty sequence with room for `tokens`."""
        if tokens > self._longest:
            raise MeasurementError(
                f"{self._folder}: {tokens} tokens asked for, the model was made for {self._longest}; "
                "lower corpus.window_tokens or latency's token counts in params.yaml"
            )
        if self._rewinds and tokens <= self._capacity:
            self._generator.rewind_to(0)
            return
        self.close()
        params = self._og.GeneratorParams(self._model)
        capacity = max(tokens, self._least)
        params.set_search_options(max_length=capacity, batch_size=1, num_beams=1, do_sample=False)
        self._generator = self._og.Generator(self._model, params)
        self._capacity = capacity

    def _append(self, ids: Ids) -> Iterator[None]:
        """Feed ids in blocks whose logits stay within BLOCK_BYTES, with a pause after each."""
        for start in range(0, len(ids), self._rows):
            self._generator.append_tokens(np.ascontiguousarray(ids[start : start + self._rows], np.int32))
            yield


@contextmanager
def runner(folder: Path, threads: int) -> Iterator[OnnxRunner]:
    """Load an artifact; MeasurementError when it is damaged."""
    opened = OnnxRunner(genai.model(folder, threads), folder, threads)
    try:
        yield opened
    finally:
        opened.close()
