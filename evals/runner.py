"""What an evaluation needs of a loaded model, and nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]

Prompt = tuple[Ids, Sequence[Ids]]
"""A prompt's ids, and the ids of each of its continuations."""


class Runner(Protocol):
    """A model in memory, of any format, in any runtime.

    Runners speak token ids only: text never reaches one, so two runtimes cannot tokenize it differently. A model keeps
    one state, so what one call yields must be taken before the next call.
    """

    @property
    def settings(self) -> Mapping[str, str]:
        """What the numbers depend on beside weights and ids: runtime and version, attention, dtype, device, threads."""
        ...

    def logits(self, ids: Ids) -> Iterator[Logits]:
        """Yield next-token logits for `ids` (shape [tokens]) in consecutive blocks of shape [rows, vocabulary].

        Row i over all blocks predicts ids[i + 1], so the rows add up to tokens - 1. Blocks, because one window of
        2048 tokens over a 150,000-token vocabulary is 1.2 GB of float32. A block may be overwritten by the next one.
        """
        ...

    def continuations(self, prompts: Sequence[Prompt]) -> Iterator[Logits]:
        """Yield for each continuation of each prompt, in order, the logits [its tokens, vocabulary] of its tokens.

        Row i follows the prompt and the continuation's first i tokens, so the first rows of a prompt's continuations
        are all alike, and the last token is never fed. A prompt runs once for all its continuations where the runtime
        can go back to its end, prompts run together where it can, and logits are made for these rows only where it can
        leave out others. Prompts and continuations hold at least one token each. An array is whole, whatever it costs:
        score a very long continuation through `logits`. It may be overwritten by the next one.
        """
        ...

    def generate(self, prompt: Ids, new_tokens: int) -> Iterator[int]:
        """Yield exactly `new_tokens` greedy tokens, each as soon as it is known; end-of-sequence does not stop it.

        The key-value cache is used, so the first token costs the prefill and every later one a decode step.
        Stopping for no token keeps the work equal over formats.
        """
        ...
