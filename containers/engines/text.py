"""Text and ids for engines whose artifact keeps the checkpoint's own tokenizer files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers.decoders import DecodeStream

from containers.engines.contract import UnsupportedError
from pipeline.backends.common import hf_tokenizer


class Text:
    """A folder's tokenizer and chat template, as transformers reads them."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = hf_tokenizer.load(folder)
        self._pieces: dict[int, str] = {}

    @property
    def bos_id(self) -> int | None:
        """Id of BOS."""
        return None if self._tokenizer.bos_token_id is None else int(self._tokenizer.bos_token_id)

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Return a text's ids."""
        return [int(id_) for id_ in self._tokenizer.encode(text, add_special_tokens=add_special)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def piece(self, id_: int) -> str:
        """Return what one token adds in the middle of a text: alone, SentencePiece would drop its leading space."""
        if id_ not in self._pieces:
            anchor = self._anchor
            self._pieces[id_] = self.decode([anchor, id_]).removeprefix(self.decode([anchor]))
        return self._pieces[id_]

    @property
    def _anchor(self) -> int:
        return self.encode("a", add_special=False)[-1]

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> list[int]:
        """Return a conversation's ids; UnsupportedError with the template's words when it refuses."""
        from jinja2 import TemplateError

        try:
            ids = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
            )
        except (TemplateError, ValueError) as error:  # ValueError: there is no template
            raise UnsupportedError(f"the chat template refuses this conversation: {error}") from error
        return [int(id_) for id_ in ids]

    def stream(self, prompt: Sequence[int]) -> "Stream":
        """Begin the text that follows a prompt."""
        return Stream(self._tokenizer._tokenizer, list(prompt))


class Stream:
    """Text of tokens as they come; what is no whole character yet is kept back."""

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=prompt[-8:], skip_special_tokens=True)

    def add(self, id_: int) -> str:
        """Return what one more token adds."""
        return self._stream.step(self._tokenizer, id_) or ""
