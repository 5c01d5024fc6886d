"""Requests through the loop that advances them, over a model that can be worked out by hand."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest

from containers.engines import slots
from containers.engines.contract import Sampling
from containers.engines.slots import Batch, Made
from evals.runner import Ids, Logits

VOCABULARY = 101
EOS = 100


class Counting:
    """A model whose next token is the sum of its sequence, modulo EOS: any token lost or mixed up changes all later."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.sequences: dict[int, list[int]] = defaultdict(list)
        self.steps: list[int] = []
        """How many slots each pass advanced."""

    def feed(self, slot: int, ids: Ids) -> Logits:
        assert len(ids)
        self.sequences[slot] += ids.tolist()
        return self._logits(slot)

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> Logits:
        assert len(set(slots)) == len(slots)
        self.steps.append(len(slots))
        for slot, id_ in zip(slots, ids, strict=True):
            self.sequences[slot].append(id_)
        return np.stack([self._logits(slot) for slot in slots])

    def clear(self, slot: int) -> None:
        del self.sequences[slot]

    def _logits(self, slot: int) -> Logits:
        row = np.zeros(VOCABULARY, np.float32)
        row[sum(self.sequences[slot]) % EOS] = 9
        return row


def answer(prompt: Sequence[int], tokens: int) -> list[int]:
    sequence = list(prompt)
    for _ in range(tokens):
        sequence.append(sum(sequence) % EOS)
    return sequence[len(prompt) :]


def greedy(tokens: int, *, ignore_eos: bool = False, candidates: int | None = None) -> Sampling:
    return Sampling(max_tokens=tokens, temperature=0, ignore_eos=ignore_eos, candidates=candidates)


def ids(*values: int) -> Ids:
    return np.array(values, np.int32)


def drain(batch: Batch) -> dict[int, list[int]]:
    """Run to the end."""
    made: dict[int, list[int]] = defaultdict(list)
    for _ in range(10_000):
        if not batch:
            return made
        collect(batch, made)
    pytest.fail("it does not end")


def collect(batch: Batch, made: dict[int, list[int]]) -> list[int]:
    """Run one round; return the requests that ended in it."""
    ended = []
    for one in batch.round():
        if isinstance(one, Made):
            made[one.key].append(one.id)
        if not isinstance(one, Made) or one.last:
            ended.append(one if isinstance(one, int) else one.key)
    return ended


def test_each_request_gets_what_it_gets_alone() -> None:
    prompts = {key: ids(*range(key, key + 5 + key)) for key in range(7)}
    batch = Batch(Counting(3), frozenset())
    for key, prompt in prompts.items():
        batch.add(key, prompt, greedy(4 + key))
    assert drain(batch) == {key: answer(prompt.tolist(), 4 + key) for key, prompt in prompts.items()}


def test_requests_share_passes() -> None:
    model = Counting(3)
    batch = Batch(model, frozenset())
    for key in range(3):
        batch.add(key, ids(key + 1), greedy(20))
    drain(batch)
    assert max(model.steps) == 3
    assert len(model.steps) < 3 * 19 / 2


def test_a_request_joins_while_others_go_on() -> None:
    batch = Batch(Counting(2), frozenset())
    batch.add(0, ids(3, 4), greedy(30))
    made: dict[int, list[int]] = defaultdict(list)
    for _ in range(10):
        collect(batch, made)
    batch.add(1, ids(5), greedy(3))
    rounds = 0
    while len(made[1]) < 3:
        collect(batch, made)
        rounds += 1
    assert rounds <= 4
    assert len(made[0]) < 30
    for key, tokens in drain(batch).items():
        made[key] += tokens
    assert made == {0: answer([3, 4], 30), 1: answer([5], 3)}


def test_a_long_prompt_goes_in_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "FEED_TOKENS", 4)
    batch = Batch(Counting(2), frozenset())
    batch.add(0, ids(1), greedy(50))
    made: dict[int, list[int]] = defaultdict(list)
    collect(batch, made)
    long = list(range(1, 42))
    batch.add(1, ids(*long), greedy(2))
    before = len(made[0])
    while not made[1]:
        collect(batch, made)
    assert len(made[0]) - before >= 10
    assert made[1] == answer(long, 2)[:1]


def test_more_requests_than_slots_wait_in_their_order() -> None:
    batch = Batch(Counting(1), frozenset())
    for key in range(3):
        batch.add(key, ids(key + 1), greedy(3))
    ended: list[int] = []
    made: dict[int, list[int]] = defaultdict(list)
    while batch:
        ended += collect(batch, made)
    assert ended == [0, 1, 2]


def test_cancelling_frees_the_slot_and_forgets_the_sequence() -> None:
    model = Counting(1)
    batch = Batch(model, frozenset())
    batch.add(0, ids(9, 9), greedy(1000))
    batch.add(1, ids(2), greedy(5))
    batch.add(2, ids(6), greedy(5))
    made: dict[int, list[int]] = defaultdict(list)
    collect(batch, made)
    batch.cancel(0)
    batch.cancel(1)  # while it waits
    batch.cancel(0)  # has ended
    assert drain(batch) == {2: answer([6], 5)}
    assert not model.sequences


def test_end_of_sequence_ends_without_a_token_unless_it_is_to_be_ignored() -> None:
    whole = answer([7, 8], 10)
    stop = whole[3]
    assert stop not in whole[:3]
    batch = Batch(Counting(2), frozenset({stop, EOS}))
    batch.add(0, ids(7, 8), greedy(10))
    batch.add(1, ids(7, 8), greedy(10, ignore_eos=True))
    assert drain(batch) == {0: whole[:3], 1: whole}


def test_log_probabilities_are_given_where_they_are_asked_for() -> None:
    batch = Batch(Counting(2), frozenset())
    batch.add(0, ids(7), greedy(1))
    batch.add(1, ids(7), greedy(1, candidates=2))
    made: dict[int, Made] = {}
    while batch:
        made |= {one.key: one for one in batch.round() if isinstance(one, Made)}
    assert (made[0].logprob, made[0].candidates) == (None, [])
    # One logit of 9 among zeros.
    assert made[1].logprob == pytest.approx(9 - np.log(np.exp(9) + VOCABULARY - 1), abs=1e-6)
    assert made[1].candidates[0] == (7, made[1].logprob)
    assert len(made[1].candidates) == 2


def test_logits_that_are_not_finite_are_an_error() -> None:
    class Broken(Counting):
        def _logits(self, slot: int) -> Logits:
            return np.full(VOCABULARY, np.nan, np.float32)

    batch = Batch(Broken(1), frozenset())
    batch.add(0, ids(1), greedy(1))
    with pytest.raises(ValueError, match="not finite"):
        list(batch.round())
