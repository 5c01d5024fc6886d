"""Slots over one transformers model: a key-value cache for each, one pass through the weights for all.

transformers' own continuous batching brings its own scheduler and sampling. Only its mechanism is used here: sequences
are rows of a batch, and an exchanged attention function gives each row its own past. That function calls the model's
own row by row, without padding or mask, so lengths and sliding windows are what they are for a sequence alone.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from evals.runner import Ids, Logits
from pipeline.backends.common.causal_lm import CausalLMRunner

ROWS = "row_by_row"
"""Name of the attention function, where config.json's own would be sdpa or eager."""

ROOM_TOKENS = 256
"""Positions by which a cache grows."""

LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
"""Kinds of RoPE whose frequencies for the whole batch follow from its longest row."""


class TransformersSlots:
    """See containers.engines.slots.Slots."""

    def __init__(self, runner: CausalLMRunner, count: int) -> None:
        self.count = count
        self._runner = runner
        self._together = can_batch(runner)
        self._caches = [self._empty() for _ in range(count)]

    @torch.inference_mode()
    def feed(self, slot: int, ids: Ids) -> Logits:
        """See Slots.feed."""
        output = self._runner.served()(
            input_ids=self._runner.row(ids), past_key_values=self._caches[slot], use_cache=True, logits_to_keep=1
        )
        self._caches[slot] = output.past_key_values
        row: Logits = _logits(output)[0]
        return row

    @torch.inference_mode()
    def step(self, slots: Sequence[int], ids: Sequence[int]) -> Logits:
        """See Slots.step."""
        if len(slots) == 1 or not self._together:
            return np.stack([self.feed(slot, np.array([id_], np.int32)) for slot, id_ in zip(slots, ids, strict=True)])
        model = self._runner.served()
        caches = [self._caches[slot] for slot in slots]
        with _row_by_row(model.config) as served:
            output = model(
                input_ids=self._runner.row(np.array(ids)).T,
                position_ids=self._runner.row(np.array([cache.get_seq_length() for cache in caches])).T,
                use_cache=False,
                rows=_Rows(caches, served),
            )
        return _logits(output)

    def clear(self, slot: int) -> None:
        """See Slots.clear."""
        self._caches[slot] = self._empty()

    def _empty(self) -> Any:
        """Return a cache for one sequence; None lets the model make its own kind."""
        if not self._together:
            return None
        cache = DynamicCache(config=self._runner.served().config)
        cache.layers = [_Roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        return cache


def can_batch(runner: CausalLMRunner) -> bool:
    """Say whether a token depends on its own sequence's keys and values alone, through an exchangeable function.

    Recurrent layers and convolutions keep a state that is not in those, and ALiBi and some kinds of RoPE look at the
    batch as a whole.
    """
    model = runner.served()
    config = model.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = {
        parameters.get("rope_type"),
        *(one.get("rope_type") for one in parameters.values() if isinstance(one, dict)),
    }
    layers = {type(layer) for layer in DynamicCache(config=config).layers}
    backend: bool = model._supports_attention_backend
    plain = layers <= {DynamicLayer, DynamicSlidingWindowLayer} and not kinds & LENGTH_DEPENDENT_ROPE
    return runner.sees_by_mask and backend and plain


class _Rows(NamedTuple):
    """What the attention function has to know of a batch."""

    caches: Sequence[Any]
    attention: str
    """The model's own attention function."""


def _attend(module: Any, query: Any, key: Any, value: Any, _: None, *, rows: _Rows, **options: Any) -> Any:
    """Let each row of the batch, [rows, heads, 1, dimensions], see its own past and itself."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    attend = AttentionInterface().get_interface(rows.attention, eager)
    outputs = []
    for row, cache in enumerate(rows.caches):
        one = slice(row, row + 1)
        keys, values = cache.update(key[one], value[one], module.layer_idx)
        output, _ = attend(module, query[one], keys, values, None, **options)
        outputs.append(output)
    return torch.cat(outputs), None


AttentionInterface.register(ROWS, _attend)


@contextlib.contextmanager
def _row_by_row(config: Any) -> Iterator[str]:
    """Exchange the attention function; give the name of the model's own. The model makes no mask meanwhile."""
    served = config._attn_implementation
    config._attn_implementation = ROWS
    try:
        yield served
    finally:
        config._attn_implementation = served


class _Roomy(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, with room for more: the library's own are copied as a whole for every token."""

    def __init__(self) -> None:
        super().__init__()
        self._rooms: list[torch.Tensor] = []

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Append [1, heads, tokens, dimensions]; return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms = [states[..., :0, :] for states in (key_states, value_states)]
        known = self.get_seq_length()
        total = known + key_states.shape[-2]
        if total > self._rooms[0].shape[-2]:
            self._rooms = [_wider(room, total) for room in self._rooms]
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., known:total, :] = states
        self.keys, self.values = (room[..., :total, :] for room in self._rooms)
        return self.keys, self.values


def _wider(room: torch.Tensor, tokens: int) -> torch.Tensor:
    first, heads, length, dimensions = room.shape
    wider = room.new_empty(first, heads, -(-tokens // ROOM_TOKENS) * ROOM_TOKENS, dimensions)
    wider[..., :length, :] = room
    return wider


def _logits(output: Any) -> Logits:
    rows: Logits = output.logits[:, -1].float().cpu().numpy()
    return rows
