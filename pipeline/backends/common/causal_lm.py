"""A transformers causal language model as a Runner: for the reference, and for the formats that transformers runs."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from evals.runner import Ids, Logits

BLOCK_BYTES = 256 * 2**20
"""Float32 logits made at once; a longer window goes through the key-value cache block by block."""

HEAD_COLUMNS = 8192
"""Rows of the head's weight, one a token of the vocabulary, that are widened to float32 at once."""


class ScoringHead(torch.nn.Module):
    """The model's head with its products kept in float32, as llama.cpp and onnxruntime keep them.

    A bfloat16 head rounds logits to steps of 1/16 between 8 and 16: that makes ties between the likeliest tokens (0.7 %
    of positions on the demo), and noise that would count as loss. Logit scaling and soft-capping follow in the model.
    """

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias: torch.Tensor | None = head.bias
        self.hidden = torch.empty(0)
        """Input of the last call, [1, rows, hidden], in the model's dtype."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiply some columns at a time: a float32 copy of a whole head can be gigabytes."""
        self.hidden = hidden
        wide = hidden.float()
        result = wide.new_empty(*wide.shape[:-1], len(self.weight))
        for start in range(0, len(self.weight), HEAD_COLUMNS):
            columns = slice(start, start + HEAD_COLUMNS)
            bias = None if self.bias is None else self.bias[columns].float()
            result[..., columns] = torch.nn.functional.linear(wide, self.weight[columns].float(), bias)
        return result


class CausalLMRunner:
    """Drives the model's own forward, so that logit scaling and soft-capping are those of its architecture.

    Scores with a float32 head; generates with the model's own, as it would be served.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        self._block_rows = max(1, BLOCK_BYTES // (4 * model.config.get_text_config().vocab_size))
        self._served_head = model.get_output_embeddings()
        self.scoring_head = ScoringHead(self._served_head)

    @property
    def settings(self) -> Mapping[str, str]:
        """See Runner.settings."""
        return {
            "runtime": f"transformers {version('transformers')}, torch {version('torch')}",
            "attention": self._model.config._attn_implementation,
            "dtype": f"{str(self._model.dtype).removeprefix('torch.')}, head float32",
            "threads": str(torch.get_num_threads()),
        }

    @torch.inference_mode()
    def logits(self, ids: Ids) -> Iterator[Logits]:
        """See Runner.logits."""
        self._model.set_output_embeddings(self.scoring_head)
        tokens = torch.from_numpy(ids[:-1].astype(np.int64))[None]
        blocks = torch.split(tokens, self._block_rows, dim=1)
        cache = None
        for block in blocks:
            output = self._model(input_ids=block, past_key_values=cache, use_cache=len(blocks) > 1)
            cache = output.past_key_values
            yield output.logits[0].numpy()

    @torch.inference_mode()
    def generate(self, prompt: Ids, new_tokens: int) -> Iterator[int]:
        """See Runner.generate."""
        self._model.set_output_embeddings(self._served_head)
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
