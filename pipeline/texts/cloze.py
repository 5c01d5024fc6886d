"""Cloze items out of running text: a passage without its last word, and four words to choose from.

The wrong words are words that end sentences of the same text, of about the same length and frequency, so neither
counting letters nor knowing common words is enough. All are in lower case and none carries punctuation.
"""

import heapq
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict

from pipeline.texts.document import Document

CHOICES = 4
FEWEST_WORDS = 20
MOST_WORDS = 80
"""In a passage; sentences from its beginning are left out beyond that."""
MOST_ITEMS = 400
MOST_CHARACTERS = 4_000_000
"""Text that is looked at."""
NEAREST = 24
"""Words like the true one, out of which the wrong ones are drawn."""

SENTENCE = re.compile(r"[^\W\d_](?:[^.!?\n]|\n(?!\s*\n)|[.!?](?!\s))*?\s(?P<word>[^\W\d_]{3,}) ?[.!?](?=\s|$)")
"""From a letter to a full stop after a plain word of three letters or more, within a paragraph. Tokenized text such as
WikiText has a space before the stop."""
WORD = re.compile(r"[^\W\d_]+")


class Item(BaseModel):
    """One line of cloze.jsonl."""

    model_config = ConfigDict(frozen=True)

    passage: str
    """Without white space at its end."""
    choices: tuple[str, ...]
    answer: int
    """Index of the true word; each index comes equally often."""


def items(documents: Sequence[Document]) -> tuple[Item, ...]:
    """Make up to MOST_ITEMS items, spread evenly over the text, the same ones at each call.

    Passages do not overlap. A text with too few sentences, or of a script without spaces, gives few or none.
    """
    counts: Counter[str] = Counter()
    found: list[tuple[str, str]] = []
    characters = 0
    for document in documents:
        text = (document.prose or document.text)[: MOST_CHARACTERS - characters]
        characters += len(text)
        counts.update(WORD.findall(text))
        found += _passages(text)
    words = sorted({word for _, word in found})
    if len(words) <= CHOICES:
        return ()
    step = max(1.0, len(found) / MOST_ITEMS)
    kept = [found[int(index * step)] for index in range(min(len(found), MOST_ITEMS))]
    chosen = [(passage, word, near) for passage, word in kept if len(near := _near(word, words, counts)) >= CHOICES - 1]
    return tuple(_item(number, *one) for number, one in enumerate(chosen))


def _passages(text: str) -> Iterator[tuple[str, str]]:
    """Yield passages without their last word, and that word."""
    starts: list[int] = []
    end = 0
    for sentence in SENTENCE.finditer(text):
        if text[end : sentence.start()].strip():
            starts = []  # something that is no sentence lies between: code, a table, a heading
        starts.append(sentence.start())
        end, word = sentence.end(), sentence["word"]
        while starts and len(text[starts[0] : sentence.start("word")].split()) > MOST_WORDS:
            starts.pop(0)
        if not starts or word != word.lower():
            continue
        passage = text[starts[0] : sentence.start("word")].rstrip()
        if len(passage.split()) >= FEWEST_WORDS:
            yield passage, word
            starts = []


def _near(word: str, words: Sequence[str], counts: Counter[str]) -> list[str]:
    """Return the words most like the true one, but none that may be the same one inflected."""
    frequency, length = math.log(counts[word]), len(word)
    others = (other for other in words if other[:4] != word[:4])
    distances = ((abs(math.log(counts[other]) - frequency) + abs(len(other) - length) / 2, other) for other in others)
    return [other for _, other in heapq.nsmallest(NEAREST, distances)]


def _item(number: int, passage: str, word: str, near: Sequence[str]) -> Item:
    wrong = random.Random(f"{passage} {word}").sample(near, CHOICES - 1)
    answer = number % CHOICES
    return Item(passage=passage, choices=(*wrong[:answer], word, *wrong[answer:]), answer=answer)
