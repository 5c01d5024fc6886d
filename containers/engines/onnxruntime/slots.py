"""Slots over the decoder that evaluation scored through: one cache, a row a slot."""

from collections.abc import Sequence

import numpy as np

from evals.runner import Ids, Logits
from pipeline.backends.onnx.decoder import Cache, Decoder


class OnnxSlots:
    """A pass goes over a range of rows, so that idle ones cost nothing: slots that advance are moved to the front."""

    def __init__(self, decoder: Decoder, count: int, capacity: int) -> None:
        self.count = count
        self._cache = Cache(decoder, count, capacity)
        self._row = list(range(count))
        """The row of each slot."""
        self._length = [0] * count
        """Tokens of each slot."""

    def feed(self, slot: int, ids: Ids) -> Logits:
        """See Slots.feed."""
        logits = self._cache.append(self._row[slot], ids[None], [self._length[slot]])
        self._length[slot] += len(ids)
        last: Logits = logits[0, -1]
        return last

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> Logits:
        """See Slots.step."""
        self._gather(slots)
        rows = [self._row[slot] for slot in slots]
        by_row = np.argsort(rows)
        logits = self._cache.append(0, np.array(ids)[by_row, None], [self._length[slots[index]] for index in by_row])
        for slot in slots:
            self._length[slot] += 1
        return logits[rows, 0]

    def clear(self, slot: int) -> None:
        """See Slots.clear."""
        self._length[slot] = 0

    def _gather(self, slots: Sequence[int]) -> None:
        """Give these slots the first rows."""
        others = [slot for slot in range(self.count) if slot not in slots and self._row[slot] < len(slots)]
        for slot in slots:
            if self._row[slot] >= len(slots):
                other = others.pop()
                self._cache.swap(self._row[slot], self._row[other], max(self._length[slot], self._length[other]))
                self._row[slot], self._row[other] = self._row[other], self._row[slot]
