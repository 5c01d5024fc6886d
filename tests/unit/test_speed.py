import time
from collections.abc import Iterator

import numpy as np
import pytest

from evals import speed
from evals.runner import Ids
from tests.support.fakes import TableRunner

PREFILL, STEP = 0.05, 0.01


class Clockwork(TableRunner):
    """Sleeps a known time for the prefill and for each decode step."""

    def __init__(self) -> None:
        super().__init__(table=np.zeros((1, 1), np.float32))
        self.calls = 0

    def generate(self, prompt: Ids, new_tokens: int) -> Iterator[int]:
        self.calls += 1
        time.sleep(PREFILL + (1.0 if self.calls == 1 else 0))
        for _ in range(new_tokens):
            yield 1
            time.sleep(STEP)


def test_prefill_and_decode_are_told_apart_and_the_warmup_is_left_out() -> None:
    prompt = np.arange(100, dtype=np.int32)
    runs = speed.time_generations(Clockwork(), prompt, output_tokens=4, warmup=1, repeats=5)
    assert len(runs) == 5
    for run in runs:
        assert PREFILL <= run.ttft_seconds < 0.5, "the first, slow call is the warm-up"
        assert run.prefill_tokens_per_second(100) == 100 / run.ttft_seconds
        assert len(run.itl_seconds) == 3
        assert 1 / (20 * STEP) < run.decode_tokens_per_second <= 1 / STEP


def test_an_engine_that_stops_early_is_refused() -> None:
    class Stops(Clockwork):
        def generate(self, prompt: Ids, new_tokens: int) -> Iterator[int]:
            yield 1

    with pytest.raises(ValueError, match="gave 1 of 4 tokens"):
        speed.time_generations(Stops(), np.arange(3, dtype=np.int32), output_tokens=4, warmup=1, repeats=5)
