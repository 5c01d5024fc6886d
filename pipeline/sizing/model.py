"""What is known of a model before any weight is read: config.json, and each tensor's name and shape.

Experts that are stored one by one are joined: a mixture of 256 experts has 90,000 tensors of a few dozen shapes, and
whoever sizes them wants each shape once.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from pipeline import architectures
from pipeline.checkpoints import layout
from pipeline.checkpoints.config import stated_context_tokens
from pipeline.checkpoints.weights import BITS, Entry, common_dtype

EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")

EXPERT = re.compile(r"\.experts\.\d+\.")
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "experts_per_token", "top_k_experts")
"""Keys by which families say how many experts a layer has, and how many of them a token goes through."""

CONTEXT_UNKNOWN = 4096
"""Where config.json is silent and nobody asks for a length."""


def tied_unless_said(text: Mapping[str, Any]) -> bool:
    """Tell whether a language model's configuration that does not say so ties embedding and head."""
    return text.get("model_type") in architectures.tools().tied


@dataclass(frozen=True, slots=True)
class Weight:
    """Equal tensors: one, or as many as a layer has experts."""

    name: str
    """As in the checkpoint, an expert's number replaced by *."""
    dtype: str
    """As safetensors writes it, such as BF16."""
    shape: tuple[int, ...]
    copies: int = 1

    @property
    def parameters(self) -> int:
        """Elements of all copies."""
        return prod(self.shape) * self.copies

    @property
    def bytes(self) -> int:
        """What they take in the checkpoint."""
        return self.parameters * BITS[self.dtype] // 8

    @property
    def rows(self) -> int:
        """Rows of all copies: what is quantized in blocks along its last axis."""
        return self.parameters // self.shape[-1] if self.shape else 1

    @property
    def layer(self) -> int | None:
        """Number of the layer that it is in."""
        found = re.search(r"\.(\d+)\.", self.name)
        return int(found[1]) if found else None

    @property
    def expert(self) -> bool:
        """Whether a token goes through some of the copies only."""
        return ".experts." in self.name


@dataclass(frozen=True)
class Model:
    """One checkpoint, or a configuration without weights."""

    name: str
    config: Mapping[str, Any]
    weights: tuple[Weight, ...]
    companion_bytes: int = 0
    """Tokenizer, chat template and licences: files that most formats carry along."""
    counted: bool = False
    """The shapes follow from config.json alone; no header was read."""

    @cached_property
    def text(self) -> Mapping[str, Any]:
        """The language model's part of config.json."""
        return layout.text_config(self.config)

    @cached_property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(weight.parameters for weight in self.weights)

    @cached_property
    def bytes(self) -> int:
        """What the weights take as they are."""
        return sum(weight.bytes for weight in self.weights)

    @cached_property
    def dtype(self) -> str:
        """What most parameters are stored in, such as bfloat16."""
        return common_dtype(Entry(one.name, one.dtype, (one.parameters,), 0, 0) for one in self.weights)

    @cached_property
    def context_tokens(self) -> int | None:
        """Longest sequence that the model was made for, where config.json says so."""
        return stated_context_tokens(self.config)

    @cached_property
    def tied(self) -> bool:
        """Whether the output head is the input embedding; transformers writes the key where it is not the default."""
        stored = any(weight.name.endswith(HEADS) for weight in self.weights)
        return bool(self.text.get("tie_word_embeddings", tied_unless_said(self.text) or not stored))

    @cached_property
    def experts(self) -> int:
        """Experts of a layer; 0 where there are none."""
        return next((int(self.text[key]) for key in EXPERT_COUNTS if self.text.get(key)), 0)

    @cached_property
    def experts_used(self) -> int:
        """Experts that one token goes through, those shared by all left out."""
        return min(self.experts, next((int(self.text[key]) for key in EXPERTS_USED if self.text.get(key)), 1))

    @cached_property
    def vocabulary_size(self) -> int:
        """Rows of the embedding."""
        return int(self.text.get("vocab_size") or 0)

    def width(self, *keys: str) -> int:
        """Return the first of these settings that there is, 0 without any."""
        return next((int(self.text[key]) for key in keys if isinstance(self.text.get(key), int)), 0)

    @cached_property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.width("hidden_size", "n_embd", "d_model")

    @cached_property
    def inner(self) -> int:
        """Width of the largest feed-forward layer that a token goes through."""
        return self.width("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size")

    @cached_property
    def layers(self) -> int:
        """Number of layers, next-token-prediction modules left out."""
        return self.width("num_hidden_layers", "n_layer", "num_layers")

    @cached_property
    def active_parameters(self) -> int:
        """Elements that one token goes through: every weight, but of experts the chosen ones."""
        return round(
            sum(weight.parameters * self.share(weight, 1) for weight in self.weights if not self.unread(weight))
        )

    def unread(self, weight: Weight) -> bool:
        """Tell whether only single rows of it are read: an input embedding that is not the head as well."""
        return weight.name.endswith(EMBEDDINGS) and not self.tied

    def share(self, weight: Weight, streams: int) -> float:
        """Return which share of a tensor a step of so many sequences reads.

        Each token picks k of n experts. Taken as independent and even, a step of s reads 1 - (1 - k/n)^s of them.
        """
        if not weight.expert or not self.experts:
            return 1.0
        missed: float = (1 - self.experts_used / self.experts) ** streams
        return 1 - missed


def joined(entries: Iterable[Entry]) -> tuple[Weight, ...]:
    """Join the experts of a header's tensors, in the order of their layers."""
    counts: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    for entry in entries:
        name = EXPERT.sub(".experts.*.", entry.name) if ".experts." in entry.name else entry.name
        counts[name, entry.dtype, entry.shape] += 1
    found = (Weight(name, dtype, shape, copies) for (name, dtype, shape), copies in counts.items())
    return tuple(sorted(found, key=lambda weight: (-1 if weight.layer is None else weight.layer, weight.name)))
