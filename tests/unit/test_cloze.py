"""Cloze items: what they are made of, and that they give nothing away."""

from collections import Counter

from pipeline.texts import cloze, read
from pipeline.texts.document import Document

DOCUMENTS = read.read("stdlib://evaluation").documents


def test_items_come_from_the_text_in_its_order_without_overlap() -> None:
    items = cloze.items(DOCUMENTS)
    whole = "\n".join(document.text for document in DOCUMENTS)
    assert 0.9 * cloze.MOST_ITEMS < len(items) <= cloze.MOST_ITEMS
    end = 0
    for item in items:
        assert len(item.passage.split()) >= cloze.FEWEST_WORDS
        assert item.passage == item.passage.strip()
        end = whole.index(item.passage, end) + len(item.passage)
        assert whole[end:].lstrip().startswith(item.choices[item.answer])


def test_neither_place_nor_form_tells_the_right_word() -> None:
    items = cloze.items(DOCUMENTS)
    for item in items:
        assert len(set(item.choices)) == cloze.CHOICES
        assert all(word.isalpha() and word == word.lower() for word in item.choices)
    positions = Counter(item.answer for item in items)
    assert max(positions.values()) - min(positions.values()) <= 1


def test_neither_length_nor_frequency_tells_the_right_word() -> None:
    """Taking the longest, shortest, commonest or rarest word is right about as often as chance."""
    items = cloze.items(DOCUMENTS)
    counts = Counter(word for document in DOCUMENTS for word in cloze.WORD.findall(document.text))
    for key in (len, lambda word: -len(word), counts.__getitem__, lambda word: -counts[word]):
        right = sum(max(item.choices, key=key) == item.choices[item.answer] for item in items)
        assert 0.1 < right / len(items) < 0.45


def test_the_same_text_gives_the_same_items_and_a_small_one_few_or_none() -> None:
    assert cloze.items(DOCUMENTS) == cloze.items(DOCUMENTS)
    assert cloze.items([Document(name="short", text="One sentence is no item.")]) == ()
    assert 0 < len(cloze.items(DOCUMENTS[2:3])) < cloze.MOST_ITEMS


def test_tokenized_text_has_sentences_too() -> None:
    """WikiText has a space before each stop; a heading before a paragraph is no part of its first sentence."""
    words = ["castle", "bridge", "meadow", "harbor", "forest", "market"]
    lead = " ".join(["The old road that leads from the town to the north @-@ west , past a mill ,"] * 2)
    text = "".join(f" = = Place {n} = = \n \n {lead} ends at the {word} . \n \n" for n, word in enumerate(words))
    items = cloze.items([Document(name="wiki", text=text)])
    assert [item.choices[item.answer] for item in items] == words
    assert {item.passage for item in items} == {f"{lead} ends at the"}


def test_words_too_much_alike_give_no_item() -> None:
    """Five endings of one stem leave nothing to choose from."""
    lead = "A sentence of twenty words or more has to stand before the word that ends it so that there is some"
    endings = ("walking", "walked", "walker", "walkers", "walks")
    assert cloze.items([Document(name="few", text=" ".join(f"{lead} talk about {word}." for word in endings))]) == ()


def test_a_conversation_is_read_without_its_templates_marks() -> None:
    prose = "\n\n".join(document.text for document in DOCUMENTS[:3])
    plain = cloze.items([Document(name="plain", text=prose)])
    assert plain
    assert cloze.items([Document(name="chat", text=prose.replace(".", "<|end|>."), prose=prose)]) == plain
