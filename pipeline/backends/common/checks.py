"""Structural checks: what a broken conversion looks like before anybody talks to it.

Quantizers have shipped artifacts whose packed weights had collapsed to one value, whose tokenizer had lost its special
tokens, or whose tensors held NaN, and every tool loaded them without a word. Perplexity tells that something is wrong;
these checks tell what.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.backends.contract import Contents, Tensor, Tokenizer
from pipeline.errors import MeasurementError
from pipeline.records import Vocabulary

MOST_NAMED = 3
"""A lost table of added tokens may be thousands; the first ones tell as much."""


def problems(contents: Contents, vocabulary: Vocabulary) -> list[str]:
    """Return what is wrong with an artifact, one sentence each; empty means sound."""
    found: list[str] = []
    count = 0
    for tensor in contents.tensors:
        count += 1
        found += tensor_problems(tensor)
    if count == 0:
        found.append("holds no tensors")
    low, high = contents.expected_bits_per_weight
    if not low <= contents.bits_per_weight <= high:
        found.append(f"has {contents.bits_per_weight:.3f} bits per weight, expected {low:.3f} to {high:.3f}")
    found += _tokenizer_problems(contents.tokenizer, vocabulary)
    return found


def tensor_problems(tensor: Tensor) -> Iterator[str]:
    """Yield what is wrong with one tensor."""
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
    if tokenizer.adds_bos != vocabulary.adds_bos:
        does, should = ("adds" if adds else "does not add" for adds in (tokenizer.adds_bos, vocabulary.adds_bos))
        yield f"its tokenizer {does} BOS to plain text, the checkpoint's {should} it"
    yield from _added_token_problems(tokenizer, vocabulary)
    for sample in vocabulary.samples:
        longest = max(map(len, sample.text.split(" ")))
        if tokenizer.longest_run is not None and longest > tokenizer.longest_run:
            continue
        ids = tokenizer.encode(sample.text)
        if ids != list(sample.ids):
            yield (
                f"its tokenizer gives {len(ids)} ids for {sample.text[:40]!r}, the checkpoint's gives "
                f"{len(sample.ids)}; they part at position {_parting(ids, sample.ids)}"
            )


def _added_token_problems(tokenizer: Tokenizer, vocabulary: Vocabulary) -> Iterator[str]:
    """Ask for the ids and do not look into tables: a token that is listed but not recognised in a text is lost, too."""
    wrong = 0
    for text, expected in vocabulary.added_tokens.items():
        ids = tokenizer.encode(text)
        if ids != [expected]:
            wrong += 1
            if wrong <= MOST_NAMED:
                yield f"its tokenizer gives {ids[:8]} for the added token {text!r}, which is {expected}"
    if wrong > MOST_NAMED:
        yield f"its tokenizer gets {wrong} of {len(vocabulary.added_tokens)} added tokens wrong"


def chat_template_agreement(tokenizer: Tokenizer, vocabulary: Vocabulary) -> tuple[float | None, tuple[str, ...]]:
    """Return the share of conversations that the artifact's runtime renders as the checkpoint does, and notes.

    A difference is a finding and no damage: plain completions still work. None when there is nothing to render.
    """
    if not vocabulary.chats:
        return None, ()
    differences = []
    for chat in vocabulary.chats:
        try:
            ids = tokenizer.render(chat.messages, chat.add_generation_prompt)
        except MeasurementError as error:
            differences.append(f"{chat.name!r} is refused: {error}")
            continue
        if ids != list(chat.ids):
            at = _parting(ids, chat.ids)
            differences.append(
                f"{chat.name!r} parts from the checkpoint's at position {at}, "
                f"{_excerpt(ids, at)} where {_excerpt(chat.ids, at)} is expected"
            )
    if not differences:
        return 1.0, ()
    total = len(vocabulary.chats)
    note = f"its runtime renders {len(differences)} of {total} conversations differently: {differences[0]}"
    return 1 - len(differences) / total, (note,)


def _parting(found: Sequence[int], expected: Sequence[int]) -> int:
    """Return the first position where two different sequences differ; the shorter one's end counts."""
    pairs = zip(found, expected, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected)))


def _excerpt(ids: Sequence[int], at: int) -> str:
    return " ".join(map(str, ids[at : at + 4])) or "the end"
