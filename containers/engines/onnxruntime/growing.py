"""Slots over a graph whose cache grows: one pass for all that advance, padded on the left to one length."""

from collections.abc import Sequence

import numpy as np

from evals.runner import Ids, Logits
from pipeline.backends.onnx.optimum.decoder import GrowingDecoder, Past, joined


class GrowingSlots:
    """While the same slots advance, what one pass gave goes into the next one as it is.

    When others do, their sequences are put together anew: copies of the caches, as each pass makes one anyway.
    """

    def __init__(self, decoder: GrowingDecoder, count: int) -> None:
        self.count = count
        self._decoder = decoder
        self._place: list[tuple[Past, int]] = [(decoder.empty(), 0)] * count
        """A past for each slot, and the slot's row there."""
        self._length = [0] * count
        """Tokens of each slot."""

    def feed(self, slot: int, ids: Ids) -> Logits:
        """See Slots.feed."""
        row: Logits = self._append([slot], ids[None])[0]
        return row

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> Logits:
        """See Slots.step."""
        return self._append(slots, np.array(ids)[:, None])

    def clear(self, slot: int) -> None:
        """See Slots.clear."""
        self._place[slot] = self._decoder.empty(), 0
        self._length[slot] = 0

    def _append(self, slots: Sequence[int], ids: Ids) -> Logits:
        past, rows = self._together(slots)
        order = np.argsort(rows)
        logits, past = self._decoder.append(past, ids[order], [self._length[slots[at]] for at in order])
        for slot, row in zip(slots, rows, strict=True):
            self._place[slot] = past, row
            self._length[slot] += ids.shape[1]
        last: Logits = logits[rows, -1]
        return last

    def _together(self, slots: Sequence[int]) -> tuple[Past, list[int]]:
        """Return a past that holds these slots' sequences and no others, and the row of each."""
        pasts = [self._place[slot][0] for slot in slots]
        if all(past is pasts[0] for past in pasts) and pasts[0].rows == len(slots):
            return pasts[0], [self._place[slot][1] for slot in slots]
        sequences = [(*self._place[slot], self._length[slot]) for slot in slots]
        return joined(self._decoder, sequences), list(range(len(slots)))
