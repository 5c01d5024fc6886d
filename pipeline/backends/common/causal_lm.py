"""A transformers causal language model as a Runner: for the reference, and for the formats that transformers runs."""

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from evals.head import Hidden, Shape, shaped
from evals.runner import Ids, Logits, Prompt
from pipeline.backends.common import device
from pipeline.backends.common.attention import sdpa
from pipeline.checkpoints.libraries import quiet
from pipeline.compute import Compute
from pipeline.errors import MeasurementError

BLOCK_BYTES = 128 * 2**20
"""Float32 logits made at once; a longer window goes through the key-value cache block by block."""

PROBE_TOKENS = 8
"""Length of the input on which is found what the model does after its head."""

FOREST_TOKENS = 512
"""Tokens of prompts and continuations that go through in one pass. In longer ones attention between strangers, which is
computed and masked, would cost more than the passes saved."""

MASKED_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers, as config.json names them, through which tokens reach each other only where the mask lets them."""

HEAD_COLUMNS = 8192
"""Rows of the head's weight, one a token of the vocabulary, that are widened to float32 at once."""

AttentionInterface.register("sdpa", sdpa)


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
        with _exact_products(hidden):
            wide = hidden.float()
            if len(self.weight) <= HEAD_COLUMNS:
                return self._columns(wide, slice(None))
            result = wide.new_empty(*wide.shape[:-1], len(self.weight))
            for start in range(0, len(self.weight), HEAD_COLUMNS):
                columns = slice(start, start + HEAD_COLUMNS)
                result[..., columns] = self._columns(wide, columns)
        return result

    def _columns(self, wide: torch.Tensor, columns: slice) -> torch.Tensor:
        bias = None if self.bias is None else self.bias[columns].float()
        return torch.nn.functional.linear(wide, self.weight[columns].float(), bias)


@contextlib.contextmanager
def _exact_products(hidden: torch.Tensor) -> Iterator[None]:
    """Let float32 products of what was bfloat16 run on a CPU's bfloat16 units: nothing is lost, as sums stay float32.

    On a GPU they would be summed less exactly, and float32 is fast enough.
    """
    before = torch.get_float32_matmul_precision()
    if hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu":
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
            "device": device.name(self._model.device),
            "threads": str(torch.get_num_threads()),
        }

    def row(self, ids: npt.NDArray[np.integer[Any]]) -> torch.Tensor:
        """Put ids where the model is, as a batch of one."""
        return torch.from_numpy(ids.astype(np.int64))[None].to(self._model.device)

    def served(self) -> Any:
        """Return the model with its own head, to generate with."""
        self._model.set_output_embeddings(self._served_head)
        return self._model

    @property
    def hidden_size(self) -> int:
        """Width of what goes into the head."""
        return int(self.scoring_head.weight.shape[1])

    @property
    def hidden_dtype(self) -> npt.DTypeLike:
        """As evals.head keeps it."""
        return _stored(self.scoring_head.weight[:0]).dtype

    def hidden(self) -> Hidden:
        """Return the head's input for the last block of logits, [rows, hidden]."""
        return _stored(self.scoring_head.hidden[0])

    def head(self) -> tuple[Hidden, npt.NDArray[np.float32] | None, Shape]:
        """Return weight, bias and shape of the head, for evals.head.save; call it after `logits`."""
        bias = self.scoring_head.bias
        return (
            _stored(self.scoring_head.weight),
            None if bias is None else _array(bias.detach().float()),
            self._head_shape(),
        )

    @torch.inference_mode()
    def _head_shape(self) -> Shape:
        products: list[torch.Tensor] = []
        hook = self.scoring_head.register_forward_hook(lambda _, __, product: products.append(product.clone()))
        (logits,) = self.logits(np.arange(PROBE_TOKENS, dtype=np.int32))
        hook.remove()
        return _shape(_array(products[0][0]), logits, self._model.config.get_text_config())

    @torch.inference_mode()
    def logits(self, ids: Ids) -> Iterator[Logits]:
        """See Runner.logits."""
        blocks = torch.split(self.row(ids[:-1]), self._block_rows, dim=1)
        cache = None
        for block in blocks:
            self._model.set_output_embeddings(self.scoring_head)  # a server generates between two blocks
            output = self._model(input_ids=block, past_key_values=cache, use_cache=len(blocks) > 1)
            cache = output.past_key_values
            yield _array(output.logits[0])

    @torch.inference_mode()
    def continuations(self, prompts: Sequence[Prompt]) -> Iterator[Logits]:
        """See Runner.continuations."""
        self._model.set_output_embeddings(self.scoring_head)
        together: list[Prompt] = []
        for prompt in prompts:
            fits = self._fits([prompt])
            if together and not (fits and self._fits([*together, prompt])):
                yield from self._forest(together)
                together = []
            if fits:
                together.append(prompt)
            elif self.sees_by_mask:
                yield from self._batched(*prompt)
            else:
                yield from self._apart(*prompt)
        if together:
            yield from self._forest(together)

    def _fits(self, prompts: Sequence[Prompt]) -> bool:
        """Short enough for one pass, and every layer sees by the mask alone, and a whole prompt."""
        config = self._model.config.get_text_config()
        scored = sum(len(ids) for _, several in prompts for ids in several)
        longest = max(len(prompt) + max(map(len, several)) for prompt, several in prompts)
        fits = scored <= self._block_rows and scored + sum(len(prompt) for prompt, _ in prompts) <= FOREST_TOKENS
        window = getattr(config, "sliding_window", None)
        return fits and self.sees_by_mask and (window is None or longest <= window)

    @functools.cached_property
    def sees_by_mask(self) -> bool:
        """Recurrent layers and convolutions pass on what they saw, and ALiBi counts the distance in the sequence."""
        config = self._model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        return kinds <= MASKED_LAYERS and not self._model._is_stateful and not getattr(config, "alibi", False)

    def _apart(self, prompt: Ids, continuations: Sequence[Ids]) -> Iterator[Logits]:
        """Run prompt and continuation together, once for each."""
        for ids in continuations:
            blocks = list(self.logits(np.concatenate([prompt, ids])))
            yield np.concatenate(blocks)[len(prompt) - 1 :]

    def _forest(self, prompts: Sequence[Prompt]) -> Iterator[Logits]:
        """Run all prompts and continuations as one sequence: each prompt sees itself, each continuation both."""
        total = sum(len(prompt) + sum(len(ids) - 1 for ids in several) for prompt, several in prompts)
        tokens, positions = np.empty(total, np.int64), np.empty(total, np.int64)
        seen = np.zeros((total, total), bool)
        scored: list[npt.NDArray[np.int64]] = []
        at = 0

        def put(ids: Ids, first: int) -> slice:
            nonlocal at
            place = slice(at, at + len(ids))
            tokens[place], positions[place] = ids, first + np.arange(len(ids))
            seen[place, place] = np.tri(len(ids), dtype=bool)
            at = place.stop
            return place

        for prompt, several in prompts:
            trunk = put(prompt, 0)
            for ids in several:
                branch = put(ids[:-1], len(prompt))
                seen[branch, trunk] = True
                scored.append(np.array([trunk.stop - 1, *range(branch.start, branch.stop)]))
        kept, place = np.unique(np.concatenate(scored), return_inverse=True)
        mask = torch.zeros((1, 1, total, total), dtype=self._model.dtype)
        mask[0, 0, torch.from_numpy(~seen)] = torch.finfo(self._model.dtype).min
        output = self._model(
            input_ids=self.row(tokens),
            attention_mask=mask.to(self._model.device),
            position_ids=self.row(positions),
            use_cache=False,
            logits_to_keep=self.row(kept)[0],
        )
        rows = _array(output.logits[0])
        for one in np.split(place, np.cumsum([len(indices) for indices in scored])[:-1]):
            yield rows[one]

    def _batched(self, prompt: Ids, continuations: Sequence[Ids]) -> Iterator[Logits]:
        """Run the prompt, then the continuations as rows of a batch over copies of its cache, padded on the right.

        What follows a token does not reach it, so no mask is needed, and positions and sliding windows are the model's
        own affair.
        """
        start = self._model(input_ids=self.row(prompt), use_cache=True, logits_to_keep=1)
        first, cache = _array(start.logits[0]), start.past_key_values
        batches = list(self._batches(continuations, _bytes(cache)))
        for batch in batches:
            fed = max(map(len, batch)) - 1
            rest: Logits = np.empty((len(batch), 0, first.shape[1]), np.float32)
            if fed:
                tokens = np.zeros((len(batch), fed), np.int64)
                for row, ids in zip(tokens, batch, strict=True):
                    row[: len(ids) - 1] = ids[:-1]
                copies = cache if batch is batches[-1] else copy.deepcopy(cache)
                copies.batch_repeat_interleave(len(batch))
                fresh = torch.from_numpy(tokens).to(self._model.device)
                rest = _array(self._model(input_ids=fresh, past_key_values=copies).logits)
            for rows, ids in zip(rest, batch, strict=True):
                yield np.concatenate([first, rows[: len(ids) - 1]])

    def _batches(self, continuations: Sequence[Ids], cache_bytes: int) -> Iterator[Sequence[Ids]]:
        """Split where a batch's padded logits, or its copies of the prompt's cache, would exceed BLOCK_BYTES."""
        most = max(1, BLOCK_BYTES // cache_bytes)
        batch: list[Ids] = []
        for ids in continuations:
            wider = [*batch, ids]
            if batch and (len(wider) > most or len(wider) * max(map(len, wider)) > self._block_rows):
                yield batch
                wider = [ids]
            batch = wider
        if batch:
            yield batch

    @torch.inference_mode()
    def generate(self, prompt: Ids, new_tokens: int) -> Iterator[int]:
        """See Runner.generate."""
        model = self.served()
        tokens = self.row(prompt)
        cache = None
        for _ in range(new_tokens):
            output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            tokens = output.logits[:, -1:].argmax(dim=-1)
            yield int(tokens)


def load(folder: Path, dtype: str, compute: Compute) -> CausalLMRunner:
    """Load a plain checkpoint in `dtype`, such as bfloat16.

    The attention kernel is pinned: kernels differ in the last bits, and the reference must not move with a library's
    default.
    """
    place = device.prepare(compute)
    with quiet():
        model, info = cast(Any, AutoModelForCausalLM).from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
        )
    require_whole(info, folder)
    return CausalLMRunner(model.to(place))


def require_whole(info: Mapping[str, Any], folder: Path) -> None:
    """Raise MeasurementError where transformers' report on a loading says that weights and model differ.

    It fills what it does not find with random numbers, and only logs it.
    """
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in info[what]):
            raise MeasurementError(
                f"{folder}: transformers reports {len(names)} {what.replace('_', ' ')}, {names[0]} the first; "
                "its weights do not fit the model that config.json describes"
            )


def _stored(tensor: torch.Tensor) -> Hidden:
    """Give a tensor's values as evals.head keeps them: numpy has no bfloat16, its bits go into uint16."""
    plain = tensor.detach().cpu().contiguous()
    return plain.view(torch.uint16).numpy() if plain.dtype == torch.bfloat16 else plain.numpy()


def _shape(product: npt.NDArray[np.float32], logits: npt.NDArray[np.float32], config: Any) -> Shape:
    """Find what the model does between its head and its logits, and prove it on these [rows, vocabulary].

    Families scale (Granite, Cohere) or cap (Gemma 2); names of config keys differ, the numbers do not lie.
    """
    scale = float((product * logits).sum(dtype=np.float64) / np.square(product).sum(dtype=np.float64))
    for shape in (Shape(), Shape(cap=getattr(config, "final_logit_softcapping", None)), Shape(scale=scale)):
        if np.allclose(shaped(product.copy(), shape), logits, rtol=1e-4, atol=1e-4):
            return shape
    raise MeasurementError(
        f"{config.model_type} changes the logits after its head in a way that is neither a factor nor a soft cap, so "
        "its distributions cannot be kept"
    )


def _array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    """Bring float32 to where numpy is; nothing is copied on a CPU."""
    array: npt.NDArray[np.float32] = tensor.cpu().numpy()
    return array


def _bytes(cache: Any) -> int:
    """Size of one sequence's key-value cache."""
    return sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
