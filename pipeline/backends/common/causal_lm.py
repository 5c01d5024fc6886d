"""A transformers causal language model as a Runner: for the reference, and for the formats that transformers runs."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from evals.runner import Ids, Logits

BLOCK_BYTES = 256 * 2**20
"""Float32 logits made at once; a longer window goes through the key-value cache block by block."""


class CausalLMRunner:
    """Drives the model's own forward, so that logit scaling and soft-capping are those of its architecture."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        self._block_rows = max(1, BLOCK_BYTES // (4 * model.config.get_text_config().vocab_size))

    @torch.inference_mode()
    def logits(self, ids: Ids) -> Iterator[Logits]:
        """See Runner.logits. The head runs in the model's dtype; its output is widened to float32."""
        tokens = torch.from_numpy(ids[:-1].astype(np.int64))[None]
        blocks = torch.split(tokens, self._block_rows, dim=1)
        cache = None
        for block in blocks:
            output = self._model(input_ids=block, past_key_values=cache, use_cache=len(blocks) > 1)
            cache = output.past_key_values
            yield output.logits[0].float().numpy()

    @torch.inference_mode()
    def generate(self, prompt: Ids, new_tokens: int) -> Iterator[int]:
        """See Runner.generate."""
        tokens = torch.from_numpy(prompt.astype(np.int64))[None]
        cache = None
        for _ in range(new_tokens):
            output = self._model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            tokens = output.logits[:, -1:].argmax(dim=-1)
            yield int(tokens)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the loaders' banners off stdout, their warnings and bars off stderr. Errors are raised, not logged."""
    bars = transformers_logging.is_progress_bar_enabled()
    level = logging.root.manager.disable
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if bars:
            transformers_logging.enable_progress_bar()
