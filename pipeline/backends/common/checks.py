"""Structural checks: what a broken conversion looks like before anybody talks to it.

Quantizers have shipped artifacts whose packed weights had collapsed to one value, whose tokenizer had lost its special
tokens, or whose tensors held NaN, and every tool loaded them without a word. Perplexity tells that something is wrong;
these checks tell what.
"""

from collections.abc import Iterator

import numpy as np

from pipeline.backends.contract import Contents, Tensor, Tokenizer
from pipeline.records import Vocabulary


def problems(contents: Contents, vocabulary: Vocabulary) -> list[str]:
    """Return what is wrong with an artifact, one sentence each; empty means sound."""
    found: list[str] = []
    count = 0
    for tensor in contents.tensors:
        count += 1
        found += _tensor_problems(tensor)
    if count == 0:
        found.append("holds no tensors")
    low, high = contents.expected_bits_per_weight
    if not low <= contents.bits_per_weight <= high:
        found.append(f"has {contents.bits_per_weight:.3f} bits per weight, expected {low:.3f} to {high:.3f}")
    found += _tokenizer_problems(contents.tokenizer, vocabulary)
    return found


def _tensor_problems(tensor: Tensor) -> Iterator[str]:
    values = tensor.values
    if values.size == 0:
        yield f"{tensor.name} is empty"
        return
    if not tensor.packed and not np.isfinite(values).all():
        yield f"{tensor.name} holds {np.count_nonzero(~np.isfinite(values))} values that are NaN or infinite"
    # Vectors may rightly be constant: a norm that was never trained is all ones, a bias all zeros.
    elif values.ndim >= 2 and values.size > 1 and (values == values.flat[0]).all():
        yield f"{tensor.name} has collapsed: all {values.size} values are {values.flat[0]}"


def _tokenizer_problems(tokenizer: Tokenizer, vocabulary: Vocabulary) -> Iterator[str]:
    if tokenizer.vocabulary_size < vocabulary.size:
        yield f"its tokenizer knows {tokenizer.vocabulary_size} tokens, the checkpoint's {vocabulary.size}"
    for name, expected in vocabulary.special_ids.items():
        found = tokenizer.special_ids.get(name)
        if expected is not None and found != expected:
            yield f"its {name} token is {found}, the checkpoint's {expected}"
    if vocabulary.chat_template is not None and tokenizer.chat_template != vocabulary.chat_template:
        yield "the checkpoint's chat template " + ("differs" if tokenizer.chat_template else "is missing")
    for sample in vocabulary.samples:
        ids = tokenizer.encode(sample.text)
        if ids != list(sample.ids):
            at = next((i for i, (a, b) in enumerate(zip(ids, sample.ids, strict=False)) if a != b), None)
            at = min(len(ids), len(sample.ids)) if at is None else at
            yield (
                f"its tokenizer gives {len(ids)} ids for {sample.text[:40]!r}, "
                f"the checkpoint's gives {len(sample.ids)}; they part at position {at}"
            )
