"""model.onnx in plain onnxruntime, its key-value cache in buffers of our own.

Given one buffer as past and as present, the graph's attention (GroupQueryAttention) appends to it in place, at a place
of its own in each row, which the row's mask tells. So sequences share each pass through the weights, while each begins,
goes back and ends by itself. onnxruntime-genai keeps that buffer to itself: its Generator begins and ends a batch's
sequences together, and its Engine gains nothing from a batch on a CPU.
"""

import collections.abc
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evals.runner import Logits
from pipeline.backends.onnx import genai
from pipeline.compute import Compute
from pipeline.errors import MeasurementError

TOKENS = ("input_ids", "attention_mask", "position_ids")
"""Inputs that are not state; graphs whose attention rotates by itself have no position_ids."""


class Decoder:
    """One copy of the weights, for any number of caches."""

    attention = "GroupQueryAttention"
    """What computes it, for Runner.settings."""

    def __init__(self, folder: Path, compute: Compute) -> None:
        section = genai.settings(folder)["model"]
        self.folder = folder
        self.context_tokens = int(section["context_length"])
        self.vocabulary_size = int(section["vocab_size"])
        eos = section["eos_token_id"]
        self.eos_ids = tuple(map(int, eos if isinstance(eos, list) else [eos]))
        layer = section["decoder"]
        self.heads, self.head_size = int(layer["num_key_value_heads"]), int(layer["head_size"])
        window = layer.get("sliding_window")
        self.least_capacity = int(window["window_size"]) if window else 1
        """Attention with a sliding window refuses a shorter cache; in one as long as the sequence it keeps it all."""
        self.session = session(folder, folder / layer["filename"], compute)
        self.past = tuple(one.name for one in self.session.get_inputs() if one.name not in TOKENS)
        self.takes_positions = "position_ids" in {one.name for one in self.session.get_inputs()}
        self.present = tuple(name.replace("past_key_values", "present") for name in self.past)
        if missing := {"logits", *self.present} ^ {one.name for one in self.session.get_outputs()}:
            raise MeasurementError(
                f"{folder}: a model with {min(missing)} keeps state other than keys and values; it cannot be run"
            )

    def sequence(self, tokens: int) -> "Sequence":
        """Return an empty sequence with room for so many tokens."""
        return Sequence(Cache(self, 1, tokens))


def session(folder: Path, file: Path, compute: Compute) -> Any:
    """Load a graph; its threads include the calling one. MeasurementError with the runtime's own words."""
    os.environ.update(genai.NO_TELEMETRY)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = compute.threads
    options.inter_op_num_threads = 1
    # Beside a GPU, too: on CUDA GroupQueryAttention takes float16 and bfloat16 alone, and these graphs are float32.
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # One class for each status code of the C library, all of them direct children of Exception.
        raise MeasurementError(f"{folder}: onnxruntime cannot load it: {error}; build the artifact again") from error


@dataclass(frozen=True, slots=True)
class _Bound:
    """Some rows' buffers, bound as past and as present."""

    io: Any
    values: list[Any] = field(default_factory=list)
    """Keep alive what is bound."""


class Cache:
    """`rows` sequences of at most `capacity` tokens, in float32, allocated whole.

    The caller knows how long each row is; what lies beyond that is overwritten, so going back costs nothing.
    """

    def __init__(self, decoder: Decoder, rows: int, capacity: int) -> None:
        self._decoder = decoder
        self.capacity = capacity
        tokens = max(capacity, decoder.least_capacity)
        shape = rows, decoder.heads, tokens, decoder.head_size
        self._buffers = [np.empty(shape, np.float32) for _ in decoder.past]
        self._logits = np.empty(0, np.float32)
        self._bound: dict[tuple[int, int], _Bound] = {}

    def append(self, first: int, ids: npt.NDArray[np.integer[Any]], lengths: collections.abc.Sequence[int]) -> Logits:
        """Append ids [rows, tokens] to the rows from `first` on, which are `lengths` tokens long.

        Several rows take one token each. Returns logits [rows, tokens, vocabulary], overwritten by the next call.
        """
        rows, tokens = ids.shape
        assert tokens == 1 or rows == 1, "the attention takes several tokens of one sequence only"
        ends = np.array(lengths)[:, None] + tokens
        assert ends.max() <= self.capacity, "no room"
        inputs = {"input_ids": ids.astype(np.int64), "attention_mask": (np.arange(ends.max()) < ends).astype(np.int64)}
        if self._decoder.takes_positions:
            inputs["position_ids"] = (np.arange(-tokens, 0) + ends).astype(np.int64)
        bound = self._bind(first, rows)
        for name, value in inputs.items():
            bound.io.bind_cpu_input(name, value)
        logits = self._room((rows, tokens, self._decoder.vocabulary_size))
        bound.io.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._decoder.session.run_with_iobinding(bound.io)
        return logits

    def swap(self, one: int, other: int, tokens: int) -> None:
        """Exchange the first `tokens` tokens of two rows."""
        for buffer in self._buffers:
            kept = buffer[one, :, :tokens].copy()
            buffer[one, :, :tokens] = buffer[other, :, :tokens]
            buffer[other, :, :tokens] = kept

    def _room(self, shape: tuple[int, ...]) -> Logits:
        size = int(np.prod(shape))
        if len(self._logits) < size:
            self._logits = np.empty(size, np.float32)
        return self._logits[:size].reshape(shape)

    def _bind(self, first: int, rows: int) -> _Bound:
        """Bind once for each range of rows: a hundred calls that a small model would feel."""
        if (first, rows) not in self._bound:
            from onnxruntime import OrtValue

            bound = _Bound(self._decoder.session.io_binding())
            for past, present, buffer in zip(self._decoder.past, self._decoder.present, self._buffers, strict=True):
                value = OrtValue.ortvalue_from_numpy(buffer[first : first + rows])
                bound.io.bind_ortvalue_input(past, value)
                bound.io.bind_ortvalue_output(present, value)
                bound.values.append(value)
            self._bound[first, rows] = bound
        return self._bound[first, rows]


class Sequence:
    """One sequence, in a cache of its own."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.length = 0

    @property
    def capacity(self) -> int:
        """Most tokens that it can hold."""
        return self._cache.capacity

    def append(self, ids: npt.NDArray[np.integer[Any]]) -> Logits:
        """Append ids; return logits [tokens, vocabulary], overwritten by the next call."""
        logits = self._cache.append(0, ids[None], [self.length])
        self.length += len(ids)
        one: Logits = logits[0]
        return one

    def clear(self) -> None:
        """Begin anew."""
        self.length = 0

    def mark(self) -> Any:
        """Name this place, to go back to."""
        return self.length

    def back(self, mark: Any) -> None:
        """Go back to a place that was marked since the beginning."""
        self.length = mark
