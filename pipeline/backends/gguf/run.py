"""A GGUF model as a Runner, on llama.cpp's C interface.

The high-level `Llama` class is not used: it keeps float32 logits of the whole context and copies them row by row.
Every setting that moves logits is pinned: key-value cache in float16 and flash attention on (what llama-server chooses
for a CPU; left to itself the choice depends on the model), at most BATCH_TOKENS tokens a step; one sequence, but for
continuations, which share their prompt's part of the cache.
"""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evals.runner import Ids, Logits, Prompt
from pipeline.backends.gguf import library
from pipeline.compute import Compute
from pipeline.errors import MeasurementError
from pipeline.toolchains import llama_cpp

BATCH_TOKENS = 512
"""Tokens in one forward pass, llama.cpp's own default."""

BLOCK_BYTES = 256 * 2**20
"""Float32 logits made at once: with 150,000 tokens of vocabulary, 447 rows."""


SEQUENCES = 16
"""Sequences that one context holds: the prompt, and continuations of it. A recurrent model keeps a state for each."""


class GgufRunner:
    """Scores and generates on one loaded model; the context is made on first use, for the length that is asked for."""

    def __init__(self, model: Any, path: Path, compute: Compute, on_gpu: bool) -> None:
        self._llama = library.library()
        self.model = model
        self._path = path
        self._compute, self._on_gpu = compute, on_gpu
        self.vocabulary_size = int(self._llama.llama_vocab_n_tokens(self._llama.llama_model_get_vocab(model)))
        self.context_tokens = int(self._llama.llama_model_n_ctx_train(model))
        self._rows = max(1, min(BATCH_TOKENS, BLOCK_BYTES // (4 * self.vocabulary_size)))
        self._context: Any = None
        self._shape = (0, 0, 0)

    @property
    def settings(self) -> Mapping[str, str]:
        """See Runner.settings."""
        return {
            "runtime": f"llama.cpp of llama-cpp-python {version('llama_cpp_python')}",
            "attention": "flash attention, key-value cache float16",
            "dtype": f"weights as stored, activations rounded to match them{'' if self._on_gpu else ', sums float32'}",
            "device": self._compute.name if self._on_gpu else "cpu",
            "threads": str(self._compute.threads),
        }

    def logits(self, ids: Ids) -> Iterator[Logits]:
        """See Runner.logits. Blocks are views of llama.cpp's own buffer, which the next block overwrites."""
        tokens = ids[:-1]
        self._begin(len(tokens), rows=self._rows)
        for start in range(0, len(tokens), self._rows):
            block = tokens[start : start + self._rows]
            yield self._decode(block, len(block))

    def continuations(self, prompts: Sequence[Prompt]) -> Iterator[Logits]:
        """See Runner.continuations."""
        for prompt, several in prompts:
            yield from self._continue(prompt, several)

    def _continue(self, prompt: Ids, continuations: Sequence[Ids]) -> Iterator[Logits]:
        """Score the continuations of one prompt.

        The prompt is sequence 0; sequences 1 to SEQUENCES - 1 take over its cells of the cache, so nothing is copied,
        and each is fed its own continuation. All of a step go through the model together.
        """
        longest = len(prompt) + max(map(len, continuations)) - 1
        self._begin(longest, rows=self._rows, room=max(longest, len(prompt) + BATCH_TOKENS), sequences=SEQUENCES)
        first = self._prompt(prompt).copy()
        memory = self._llama.llama_get_memory(self._context)
        for batch in self._batches(continuations):
            fed = np.concatenate([ids[:-1] for ids in batch])
            lengths = [len(ids) - 1 for ids in batch]
            positions = len(prompt) + np.concatenate([np.arange(length) for length in lengths])
            for sequence in range(1, len(batch) + 1):
                self._llama.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
            sequences = np.repeat(np.arange(1, len(batch) + 1), lengths)
            steps = range(self._rows, len(fed), self._rows)
            parts = (np.split(array, steps) for array in (fed, positions, sequences))
            rows = [self._decode_at(*step).copy() for step in zip(*parts, strict=True) if len(step[0])]
            for sequence in range(1, len(batch) + 1):
                self._llama.llama_memory_seq_rm(memory, sequence, -1, -1)
            for own in np.split(np.concatenate([first[:0], *rows]), np.cumsum(lengths)[:-1]):
                yield np.concatenate([first, own])

    def _batches(self, continuations: Sequence[Ids]) -> Iterator[Sequence[Ids]]:
        """Split where sequences run out, or a step's tokens; a continuation of more tokens takes several steps."""
        batch: list[Ids] = []
        for ids in continuations:
            tokens = sum(len(one) - 1 for one in [*batch, ids])
            if batch and (len(batch) == SEQUENCES - 1 or tokens > self._rows):
                yield batch
                batch = []
            batch = [*batch, ids]
        if batch:
            yield batch

    def _prompt(self, prompt: Ids) -> Logits:
        """Feed a prompt to sequence 0; return the row that predicts the next token."""
        *heads, tail = np.split(prompt, range(BATCH_TOKENS, len(prompt), BATCH_TOKENS))
        for head in heads:
            self._decode(head, 0)
        return self._decode(tail, 1)

    def generate(self, prompt: Ids, new_tokens: int) -> Iterator[int]:
        """See Runner.generate."""
        self._begin(len(prompt) + new_tokens, rows=1)
        logits = self._prompt(prompt)
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

    def _begin(self, tokens: int, rows: int, room: int | None = None, sequences: int = 1) -> None:
        """Give an empty context for sequences of up to `tokens` that returns up to `rows` rows of logits a step.

        `room` is the tokens that several sequences hold together, what they share counted once.
        """
        if tokens > self.context_tokens:
            raise MeasurementError(
                f"{self._path}: {tokens} tokens asked for, the model was made for {self.context_tokens}; "
                "lower corpus.window_tokens or latency's token counts in params.yaml"
            )
        shape = (-(-(room or tokens) // 256) * 256, rows, sequences)
        if self._context is not None and shape == self._shape:
            self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), False)
            return
        self.close()
        params = self._llama.llama_context_default_params()
        params.n_ctx, params.n_outputs_max, params.n_seq_max = shape
        params.kv_unified = sequences > 1
        params.n_outputs_max_per_seq = rows
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = self._compute.threads
        params.flash_attn_type = self._llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = self._llama.llama_init_from_model(self.model, params)
        if not self._context:
            self._context = None
            raise MeasurementError(f"{self._path}: no context of {tokens} tokens: {library.errors()}")
        self._shape = shape

    def _decode(self, ids: Ids, rows: int) -> Logits:
        """Append ids to the sequence; return the logits after each of the last `rows` of them.

        Null pointers for positions and sequence ids make llama.cpp continue sequence 0, so nothing is filled in here.
        """
        tokens = np.ascontiguousarray(ids, np.int32)
        wanted = np.zeros(len(tokens), np.int8)
        wanted[len(tokens) - rows :] = 1
        batch = self._llama.llama_batch(
            n_tokens=len(tokens), token=_pointer(tokens, ctypes.c_int32), logits=_pointer(wanted, ctypes.c_int8)
        )
        return self._run(batch, rows)

    def _decode_at(self, ids: Ids, positions: Ids, sequences: Ids) -> Logits:
        """Add a token to each named sequence at each named position; return the logits after every one of them."""
        tokens, places, owners = (np.ascontiguousarray(array, np.int32) for array in (ids, positions, sequences))
        step = owners.itemsize
        addresses = owners.ctypes.data + step * np.arange(len(owners), dtype=np.uintp)
        ones, wanted = np.ones(len(tokens), np.int32), np.ones(len(tokens), np.int8)
        batch = self._llama.llama_batch(
            n_tokens=len(tokens),
            token=_pointer(tokens, ctypes.c_int32),
            pos=_pointer(places, ctypes.c_int32),
            n_seq_id=_pointer(ones, ctypes.c_int32),
            seq_id=_pointer(addresses, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(wanted, ctypes.c_int8),
        )
        return self._run(batch, len(tokens))

    def _run(self, batch: Any, rows: int) -> Logits:
        status = self._llama.llama_decode(self._context, batch)
        if status != 0:
            raise MeasurementError(f"{self._path}: llama_decode returned {status}: {library.errors()}")
        if rows == 0:
            return np.empty((0, self.vocabulary_size), np.float32)
        return np.ctypeslib.as_array(self._llama.llama_get_logits(self._context), (rows, self.vocabulary_size))


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


@contextmanager
def runner(path: Path, compute: Compute) -> Iterator[GgufRunner]:
    """Load a GGUF file; MeasurementError when it is damaged."""
    on_gpu = llama_cpp.find().gpu_layers(compute) == "all"
    with library.model(path, on_gpu=on_gpu) as model:
        opened = GgufRunner(model, path, compute, on_gpu)
        try:
            yield opened
        finally:
            opened.close()
