"""Cutting tokenized documents into windows, and telling whether two sets of windows share text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evals.runner import Ids
from evals.windows import Windows
from pipeline.texts.document import Document

NGRAM = 13
"""Words in a run that counts as shared: the length at which GPT-3's authors looked for it (Brown et al. 2020)."""

WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
"""A run of letters and digits, or one character of Thai, Japanese or Chinese."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Encoded:
    """A document as ids, with the UTF-8 bytes that each id stands for."""

    ids: Ids
    ends: npt.NDArray[np.int64]
    """int64 [tokens]: bytes of the text up to and including each token."""


def encode(tokenizer: Any, document: Document) -> Encoded:
    """Tokenize a document whole, without BOS or EOS, with byte offsets from the tokenizer's character offsets."""
    encoding = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.array(encoding["input_ids"], dtype=np.int32)
    characters = np.array([end for _, end in encoding["offset_mapping"]], dtype=np.int64)
    byte_ends = np.cumsum([0, *(len(character.encode("utf-8", "surrogatepass")) for character in document.text)])
    # A character split over several byte tokens ends, for all but its last token, where it ends as a whole; running
    # maximum keeps the ends from going back where a normalizer reordered characters.
    return Encoded(ids=ids, ends=np.maximum.accumulate(byte_ends[characters]).astype(np.int64))


def windows(documents: Sequence[Encoded], prefix: int | None, length: int, most: int) -> tuple[Windows, int]:
    """Cut documents into windows of `length` tokens, `prefix` included, and keep at most `most`, evenly spread.

    No window reaches over a document's end; what is left of a document after its last whole window is dropped.
    Returns the windows and the number of text tokens in none of them.
    """
    step = length - (prefix is not None)
    places = [(d, start) for d, doc in enumerate(documents) for start in range(0, len(doc.ids) - step + 1, step)]
    if len(places) > most:
        places = [places[i] for i in np.linspace(0, len(places) - 1, most).round().astype(int)]
    ids = np.empty((len(places), length), dtype=np.int32)
    document = np.empty(len(places), dtype=np.int32)
    utf8_bytes = np.empty(len(places), dtype=np.int64)
    for row, (d, start) in enumerate(places):
        source = documents[d]
        ids[row, length - step :] = source.ids[start : start + step]
        if prefix is not None:
            ids[row, 0] = prefix
        # Without a prefix token the window's first text token is context only, and its bytes are not scored.
        unscored_end = start if prefix is not None else start + 1
        before = source.ends[unscored_end - 1] if unscored_end else 0
        document[row], utf8_bytes[row] = d, source.ends[start + step - 1] - before
    dropped = sum(len(doc.ids) for doc in documents) - step * len(places)
    return Windows(ids=ids, document=document, utf8_bytes=utf8_bytes), dropped


def overlap(evaluation: Sequence[str], calibration: Sequence[str], n: int = NGRAM) -> float:
    """Return the share of the evaluation texts' n-grams of words that the calibration texts hold too.

    Words and not tokens, lower-cased and without punctuation: a vocabulary that has a token for each space would call
    every indented line a copy. A character of a script that is written without spaces counts as a word.
    """
    numbers: dict[str, int] = {}
    wanted = np.concatenate([np.empty(0, np.uint64), *(_hashes(text, numbers, n) for text in evaluation)])
    seen = np.concatenate([np.empty(0, np.uint64), *(_hashes(text, numbers, n) for text in calibration)])
    return float(np.isin(wanted, seen).mean()) if len(wanted) else 0.0


def _hashes(text: str, numbers: dict[str, int], n: int) -> npt.NDArray[np.uint64]:
    """Hash every n-gram of a text's words to 64 bits; `numbers` grows by the words that are new."""
    words = [numbers.setdefault(word, len(numbers) + 1) for word in WORD.findall(text.lower())]
    if len(words) < n:
        return np.empty(0, np.uint64)
    grams = np.lib.stride_tricks.sliding_window_view(np.array(words, dtype=np.uint64), n)
    hashes = np.zeros(len(grams), dtype=np.uint64)
    for position in range(n):
        hashes = (hashes * np.uint64(0x9E3779B97F4A7C15)) ^ (grams[:, position] * np.uint64(0xD6E8FEB86659FD93))
        hashes ^= hashes >> np.uint64(29)
    return hashes
