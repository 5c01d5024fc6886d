"""Text and ids for engines whose artifact keeps the checkpoint's own tokenizer files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from containers.engines.contract import UnsupportedError
from pipeline.backends.common import hf_tokenizer

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that are no character, or none yet."""

ANCHOR_TOKENS = 8
"""Tokens of the prompt that a text is continued from: SentencePiece drops the space that a text begins with."""


class Text:
    """A folder's tokenizer and chat template, as transformers reads them."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = hf_tokenizer.load(folder)
        self._pieces: dict[int, str] = {}
        self._anchor = self.encode("a", add_special=False)[-1]

    @property
    def bos_id(self) -> int | None:
        """Id of BOS."""
        return None if self._tokenizer.bos_token_id is None else int(self._tokenizer.bos_token_id)

    @property
    def eos_id(self) -> int | None:
        """Id of EOS; a model may end with others as well."""
        return None if self._tokenizer.eos_token_id is None else int(self._tokenizer.eos_token_id)

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Return a text's ids. UnsupportedError for halves of surrogate pairs, which JSON can write."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UnsupportedError(f"this is no text: {error}") from error
        return [int(id_) for id_ in self._tokenizer.encode(text, add_special_tokens=add_special)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def piece(self, id_: int) -> str:
        """Return what one token adds in the middle of a text: alone, SentencePiece would drop its leading space."""
        if id_ not in self._pieces:
            self._pieces[id_] = self.decode([self._anchor, id_]).removeprefix(self.decode([self._anchor]))
        return self._pieces[id_]

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> list[int]:
        """Return a conversation's ids; UnsupportedError with the template's words when it refuses."""
        try:
            ids = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
            )
        except Exception as error:  # a template is a program of the artifact's: it raises what it likes
            raise UnsupportedError(f"the chat template refuses this conversation: {error}") from error
        return [int(id_) for id_ in ids]

    def stream(self, prompt: Sequence[int]) -> "Stream":
        """Begin the text that follows a prompt, special tokens left out."""

        def decode(ids: list[int]) -> str:
            return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

        return Stream(decode, prompt)


class Stream:
    """Text of tokens as they come; bytes that are no character yet are kept back.

    Tokens are decoded behind those of the text before: what a token looks like depends on its neighbours. The
    tokenizers library's own DecodeStream raises where a decoder changes what it has given already.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._given = 0
        self._begin(list(prompt[-ANCHOR_TOKENS:]))

    def add(self, id_: int) -> str:
        """Return what one more token adds."""
        self._ids.append(id_)
        text = self._decode(self._ids)
        whole = text.rstrip(INCOMPLETE)
        new = whole[self._given :]
        self._given = max(self._given, len(whole))
        if new and whole == text:
            self._begin(self._ids[self._fresh :])
        return new

    def _begin(self, ids: list[int]) -> None:
        """Go on from these ids, whose text has been given."""
        self._ids = ids
        self._fresh = len(ids)
        self._given = len(self._decode(ids).rstrip(INCOMPLETE))
