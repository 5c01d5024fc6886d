"""A graph that Optimum exported in plain onnxruntime: keys and values go in as past and come out one token longer.

Each pass gives new tensors in place of the ones it was given, so a sequence of several is kept as they are: they stay
where the model runs, and going back is remembering. Sequences of different lengths share a pass when the shorter ones
are padded on the left, which the mask then hides.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evals.runner import Logits
from pipeline.backends.onnx.decoder import TOKENS, session
from pipeline.checkpoints import config as checkpoint_config
from pipeline.compute import Compute
from pipeline.errors import MeasurementError

GRAPH = "model.onnx"


@dataclass(frozen=True, slots=True)
class Past:
    """Keys and values of `rows` sequences, `tokens` long, where shorter ones are padded on the left."""

    values: tuple[Any, ...]
    """OrtValues, in the order of GrowingDecoder.past."""
    rows: int
    tokens: int


class GrowingDecoder:
    """One copy of the weights, for any number of sequences."""

    attention = "as exported"
    """What computes it, for Runner.settings: products, masks and softmax, one operator each."""

    def __init__(self, folder: Path, compute: Compute, graph: Path | None = None) -> None:
        self.folder = folder
        settings = _settings(folder)
        self.context_tokens = checkpoint_config.context_tokens(settings, folder, str(folder))
        self.eos_ids = checkpoint_config.eos_ids(settings, folder, str(folder))
        self.session = session(folder, graph or folder / GRAPH, compute)
        inputs = {one.name: one for one in self.session.get_inputs()}
        self.vocabulary_size = int(self.session.get_outputs()[0].shape[-1])
        self.past = tuple(name for name in inputs if name not in TOKENS)
        self.present = tuple(name.replace("past_key_values", "present") for name in self.past)
        self._shapes = tuple(tuple(inputs[name].shape) for name in self.past)
        self._tokens = frozenset(inputs) & frozenset(TOKENS)
        self._logits = np.empty(0, np.float32)
        if missing := {"logits", *self.present} ^ {one.name for one in self.session.get_outputs()}:
            raise MeasurementError(
                f"{folder}: a model with {min(missing)} keeps state other than keys and values; it cannot be run"
            )

    def sequence(self, tokens: int) -> "GrowingSequence":
        """Return an empty sequence for at most so many tokens."""
        return GrowingSequence(self, tokens)

    def empty(self, rows: int = 1) -> Past:
        """Return the past of sequences that have not begun."""
        shapes = (self.shape(index, rows, 0) for index in range(len(self.past)))
        return Past(tuple(_value(np.empty(shape, np.float32)) for shape in shapes), rows, 0)

    def shape(self, index: int, rows: int, tokens: int) -> tuple[int, ...]:
        """Return the shape that one of `past` has for so many sequences and tokens."""
        sizes = {"batch_size": rows, "past_sequence_length": tokens}
        return tuple(sizes[size] if isinstance(size, str) else int(size) for size in self._shapes[index])

    def axes(self, index: int) -> tuple[int, int]:
        """Tell which axes of one of `past` are sequences and tokens."""
        return self._shapes[index].index("batch_size"), self._shapes[index].index("past_sequence_length")

    def append(self, past: Past, ids: npt.NDArray[np.integer[Any]], lengths: Sequence[int]) -> tuple[Logits, Past]:
        """Append ids [rows, tokens] to sequences that are `lengths` tokens long without their padding.

        Returns logits [rows, tokens, vocabulary], overwritten by the next call, and the new past.
        """
        rows, tokens = ids.shape
        total = past.tokens + tokens
        ends = np.array(lengths)[:, None] + tokens
        inputs = {
            "input_ids": ids.astype(np.int64),
            "attention_mask": (np.arange(total) >= total - ends).astype(np.int64),
            "position_ids": (np.arange(-tokens, 0) + ends).astype(np.int64),
        }
        io = self.session.io_binding()
        for name in self._tokens:
            io.bind_cpu_input(name, inputs[name])
        for name, value in zip(self.past, past.values, strict=True):
            io.bind_ortvalue_input(name, value)
        logits = self._room((rows, tokens, self.vocabulary_size))
        io.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        for name in self.present:
            io.bind_output(name, "cpu")
        self.session.run_with_iobinding(io)
        _, *present = io.get_outputs()
        return logits, Past(tuple(present), rows, total)

    def _room(self, shape: tuple[int, ...]) -> Logits:
        size = int(np.prod(shape))
        if len(self._logits) < size:
            self._logits = np.empty(size, np.float32)
        return self._logits[:size].reshape(shape)


class GrowingSequence:
    """One sequence."""

    def __init__(self, decoder: GrowingDecoder, capacity: int) -> None:
        self.capacity = capacity
        self._decoder = decoder
        self._past = decoder.empty()

    def append(self, ids: npt.NDArray[np.integer[Any]]) -> Logits:
        """Append ids; return logits [tokens, vocabulary], overwritten by the next call."""
        logits, self._past = self._decoder.append(self._past, ids[None], [self._past.tokens])
        one: Logits = logits[0]
        return one

    def clear(self) -> None:
        """Begin anew."""
        self._past = self._decoder.empty()

    def mark(self) -> Any:
        """Name this place, to go back to."""
        return self._past

    def back(self, mark: Any) -> None:
        """Go back to a place that was marked since the beginning."""
        self._past = mark


def joined(decoder: GrowingDecoder, sequences: Sequence[tuple[Past, int, int]]) -> Past:
    """Make one past of several sequences, each given as a row of a past, and its length without padding."""
    rows, tokens = len(sequences), max(length for _, _, length in sequences)
    sources = {id(past): past for past, _, _ in sequences}
    values = []
    for index in range(len(decoder.past)):
        row_axis, token_axis = decoder.axes(index)
        whole = np.zeros(decoder.shape(index, rows, tokens), np.float32)
        read = {key: past.values[index].numpy() for key, past in sources.items()}
        for row, (past, at, length) in enumerate(sequences):
            into, of = [slice(None)] * whole.ndim, [slice(None)] * whole.ndim
            into[row_axis], of[row_axis] = slice(row, row + 1), slice(at, at + 1)
            into[token_axis], of[token_axis] = slice(tokens - length, None), slice(past.tokens - length, None)
            whole[tuple(into)] = read[id(past)][tuple(of)]
        values.append(_value(whole))
    return Past(tuple(values), rows, tokens)


def _value(array: npt.NDArray[np.float32]) -> Any:
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(array)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise MeasurementError(f"{path}: cannot be read ({error.strerror}); build the artifact again") from error
    except ValueError as error:
        raise MeasurementError(f"{path}: is not JSON ({error}); build the artifact again") from error
    return settings
