"""How fast a loaded model is for one stream. Prefill is bound by arithmetic, decode by memory bandwidth.

TTFT is the time from handing over the prompt to the first new token: one prefill and one pick. Every later token is one
decode step. Lengths are fixed and end-of-sequence is ignored, so that every format does the same work.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from evals.runner import Ids, Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Raw times of one timed generation."""

    ttft_seconds: float
    itl_seconds: tuple[float, ...]
    """Inter-token latency: each gap between consecutive tokens, output tokens - 1 of them."""

    def prefill_tokens_per_second(self, prompt_tokens: int) -> float:
        """Prompt tokens / TTFT."""
        return prompt_tokens / self.ttft_seconds

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first / the time they took."""
        return len(self.itl_seconds) / sum(self.itl_seconds)


def time_generations(
    runner: Runner,
    prompt: Ids,
    *,
    output_tokens: int,
    warmup: int,
    repeats: int,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> tuple[Generation, ...]:
    """Generate warmup + repeats times and return the times of the repeats."""
    runs = [_time_once(runner, prompt, output_tokens) for _ in track(range(warmup + repeats))]
    return tuple(runs[warmup:])


def _time_once(runner: Runner, prompt: Ids, output_tokens: int) -> Generation:
    start = time.perf_counter()
    stamps = []
    for _ in runner.generate(prompt, output_tokens):
        stamps.append(time.perf_counter())
    if len(stamps) != output_tokens:
        raise ValueError(f"the runner gave {len(stamps)} of {output_tokens} tokens")
    gaps = tuple(later - earlier for earlier, later in pairwise(stamps))
    return Generation(ttft_seconds=stamps[0] - start, itl_seconds=gaps)
