"""Text of tokens as they come."""

from pathlib import Path

import pytest

from containers.engines.contract import UnsupportedError
from containers.engines.text import Stream, Text

DEMO = Path(__file__).parents[2] / "models" / "demo"

TEXTS = (
    "The statement  binds a name.\n\n    return x  # naïve café",
    "日本語と😀 and 👩‍👩‍👧 together",
    "ends in the middle of a character: é",
    " ",
)


def by_bytes(ids: list[int]) -> str:
    """A vocabulary of bytes, as byte-level BPE falls back to."""
    return bytes(ids).decode(errors="replace")


@pytest.fixture(scope="module")
def text() -> Text:
    if not (DEMO / "tokenizer.json").is_file():
        pytest.skip("models/demo holds no checkpoint")
    return Text(DEMO)


@pytest.mark.parametrize("words", TEXTS)
def test_a_stream_of_bytes_gives_whole_characters(words: str) -> None:
    stream = Stream(by_bytes, list(b"before "))
    parts = [stream.add(byte) for byte in words.encode()]
    assert "".join(parts) == words
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)
    assert len([part for part in parts if part]) == len(words)


def test_bytes_that_become_no_character_are_given_once_something_follows() -> None:
    stream = Stream(by_bytes, [])
    parts = [stream.add(byte) for byte in b"a\xe6\x97b\xffc"]
    assert parts[0] == "a"
    assert "".join(parts) == by_bytes(list(b"a\xe6\x97b\xffc"))


@pytest.mark.parametrize("words", TEXTS)
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_streams_assemble_to_the_text(text: Text, words: str, cut: int) -> None:
    """The demo's vocabulary has no Japanese: those characters come as three tokens of one byte each."""
    ids = text.encode("Before it. " + words, add_special=True)
    at = len(text.encode("Before it.", add_special=True)) - cut
    stream = text.stream(ids[:at])
    streamed = "".join(stream.add(id_) for id_ in ids[at:])
    assert text.decode(ids[1:at]) + streamed == text.decode(ids[1:])


def test_special_tokens_are_left_out_and_cost_no_space(text: Text) -> None:
    ids = text.encode("one two three", add_special=False)
    assert text.eos_id is not None
    stream = text.stream([])
    assert "".join(stream.add(id_) for id_ in [ids[0], text.eos_id, *ids[1:]]) == "one two three"


def test_pieces_are_whole_tokens_with_their_spaces(text: Text) -> None:
    ids = text.encode("a binds x", add_special=False)
    assert "".join(map(text.piece, ids[1:])) == " binds x"


def test_what_is_no_text_is_refused(text: Text) -> None:
    with pytest.raises(UnsupportedError, match="no text"):
        text.encode("half a pair: \ud83d", add_special=True)
    with pytest.raises(UnsupportedError, match="chat template"):
        text.render([{"role": "user", "content": "\ud83d"}], True)
    with pytest.raises(UnsupportedError, match="chat template"):
        text.render([{"role": "user", "content": None}, {"role": "nobody"}], True)
