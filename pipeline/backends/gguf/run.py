"""A GGUF model as a Runner, on llama.cpp's C interface.

The high-level `Llama` class is not used: it keeps float32 logits of the whole context and copies them row by row.
Every setting that moves logits is pinned: key-value cache in float16 and flash attention on (what llama-server chooses
for a CPU; left to itself the choice depends on the model), one sequence, at most BATCH_TOKENS tokens a step.
"""

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from evals.runner import Ids, Logits
from pipeline.backends.gguf import library
from pipeline.errors import MeasurementError

BATCH_TOKENS = 512
"""Tokens in one forward pass, llama.cpp's own default."""

BLOCK_BYTES = 256 * 2**20
"""Float32 logits made at once: with 150,000 tokens of vocabulary, 447 rows."""


class GgufRunner:
    """Scores and generates on one loaded model; the context is made on first use, for the length that is asked for."""

    def __init__(self, model: Any, path: Path, threads: int) -> None:
        self._llama = library.library()
        self._model = model
        self._path = path
        self._threads = threads
        self._vocabulary = self._llama.llama_vocab_n_tokens(self._llama.llama_model_get_vocab(model))
        self._longest = self._llama.llama_model_n_ctx_train(model)
        self._rows = max(1, min(BATCH_TOKENS, BLOCK_BYTES // (4 * self._vocabulary)))
        self._context: Any = None
        self._shape = (0, 0)

    @property
    def settings(self) -> Mapping[str, str]:
        """See Runner.settings."""
        return {
            "runtime": f"llama.cpp of llama-cpp-python {version('llama_cpp_python')}",
            "attention": "flash attention, key-value cache float16",
            "dtype": "weights as stored, activations rounded to match them, sums float32",
            "threads": str(self._threads),
        }

    def logits(self, ids: Ids) -> Iterator[Logits]:
        """See Runner.logits. Blocks are views of llama.cpp's own buffer, which the next block overwrites."""
        tokens = ids[:-1]
        self._begin(len(tokens), rows=self._rows)
        for start in range(0, len(tokens), self._rows):
            block = tokens[start : start + self._rows]
            yield self._decode(block, len(block))

    def generate(self, prompt: Ids, new_tokens: int) -> Iterator[int]:
        """See Runner.generate."""
        self._begin(len(prompt) + new_tokens, rows=1)
        *heads, tail = np.split(prompt, range(BATCH_TOKENS, len(prompt), BATCH_TOKENS))
        for head in heads:
            self._decode(head, 0)
        logits = self._decode(tail, 1)
        for remaining in range(new_tokens, 0, -1):
            token = int(logits[-1].argmax())
            yield token
            if remaining > 1:
                logits = self._decode(np.array([token], np.int32), 1)

    def close(self) -> None:
        """Free the context; the model is its owner's to free."""
        if self._context is not None:
            self._llama.llama_free(self._context)
            self._context = None

    def _begin(self, tokens: int, rows: int) -> None:
        """Give an empty context with room for `tokens` that returns up to `rows` rows of logits a step."""
        if tokens > self._longest:
            raise MeasurementError(
                f"{self._path}: {tokens} tokens asked for, the model was made for {self._longest}; "
                "lower corpus.window_tokens or latency's token counts in params.yaml"
            )
        shape = (-(-tokens // 256) * 256, rows)
        if self._context is not None and shape == self._shape:
            self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), False)
            return
        self.close()
        params = self._llama.llama_context_default_params()
        params.n_ctx, params.n_outputs_max = shape
        params.n_outputs_max_per_seq = rows
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = self._llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = self._llama.llama_init_from_model(self._model, params)
        if not self._context:
            self._context = None
            raise MeasurementError(f"{self._path}: no context of {tokens} tokens: {library.errors()}")
        self._shape = shape

    def _decode(self, ids: Ids, rows: int) -> Logits:
        """Append ids to the sequence; return the logits after each of the last `rows` of them.

        Null pointers for positions and sequence ids make llama.cpp continue sequence 0, so nothing is filled in here.
        """
        tokens = np.ascontiguousarray(ids, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        wanted = np.zeros(len(tokens), np.int8)
        wanted[len(tokens) - rows :] = 1
        flags = wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        batch = self._llama.llama_batch(n_tokens=len(tokens), token=pointer, logits=flags)
        status = self._llama.llama_decode(self._context, batch)
        if status != 0:
            raise MeasurementError(f"{self._path}: llama_decode returned {status}: {library.errors()}")
        if rows == 0:
            return np.empty((0, self._vocabulary), np.float32)
        return np.ctypeslib.as_array(self._llama.llama_get_logits(self._context), (rows, self._vocabulary))


@contextmanager
def runner(path: Path, threads: int) -> Iterator[GgufRunner]:
    """Load a GGUF file; MeasurementError when it is damaged."""
    with library.model(path) as model:
        opened = GgufRunner(model, path, threads)
        try:
            yield opened
        finally:
            opened.close()
