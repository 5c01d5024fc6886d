"""Hugging Face tokenizers: the checkpoint's own, which is the reference, and those of artifacts that keep its files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.backends.contract import Tokenizer
from pipeline.checkpoints import tokenizer as checkpoint_tokenizer
from pipeline.errors import MeasurementError
from pipeline.records import Chat, Message, Sample, Vocabulary

AWKWARD_TEXTS = (
    "Hello, world!",
    "inner  double and trailing spaces ",
    "line\nbreaks\n\n\tand tabs",
    "naïve café, Straße, 北京, Ελλάδα, 🙂",
    "x = 3.14159 * (1e-5 + 0xFF) # 2026",
)
"""Where tokenizers differ when a conversion went wrong: spaces, newlines, digits, and bytes beyond ASCII.

None begins with a space: transformers 5 merges a leading space with the one that Llama's tokenizer puts before every
text, where `tokenizer.model` itself, and with it llama.cpp, keeps both.
"""

QUESTION = ("user", "Which river runs through the old town?")
CONVERSATIONS: tuple[tuple[str, tuple[tuple[str, str], ...], bool], ...] = (
    ("one question", (QUESTION,), True),
    ("no generation prompt", (QUESTION,), False),
    ("system and user", (("system", "Answer in one short sentence."), QUESTION), True),
    ("three turns", (QUESTION, ("assistant", "The Regnitz does."), ("user", "And where does it end?")), True),
    ("newlines and spaces", (("user", "  A list:\n\n- one\n-  two\n\n\tthree  \n"),), True),
    ("beyond ASCII", (("user", "Übersetze »naïve« ins 日本語, bitte 🙂"),), True),
    ("looks like special tokens", (("user", "Does </s> or <|im_end|> or [INST] or <eos> end a turn?"),), True),
)
"""Name, (role, content) of each message, and whether the assistant's turn is opened. Each ends with the user: servers
take an assistant's last message for the beginning of the answer."""


def load(folder: Path) -> Any:
    """Open a folder's tokenizer through transformers, from its files alone."""
    return checkpoint_tokenizer.load(folder)


def describe(folder: Path) -> Tokenizer:
    """Return the structural checks' view of a folder's tokenizer."""
    from jinja2 import TemplateError

    tokenizer = load(folder)

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        try:
            return _render(tokenizer, messages, add_generation_prompt)
        except (TemplateError, ValueError) as error:  # ValueError: it has no template
            raise MeasurementError(f"transformers cannot render it: {error}") from error

    return Tokenizer(
        encode=lambda text: list(tokenizer.encode(text, add_special_tokens=False)),
        vocabulary_size=len(tokenizer),
        special_ids={"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id},
        adds_bos=_adds_bos(tokenizer),
        chat_template=_template(tokenizer),
        render=render,
    )


def vocabulary(tokenizer: Any, texts: Iterable[str]) -> Vocabulary:
    """Note what the checkpoint's tokenizer does with awkward texts, these texts, added tokens and conversations."""
    plain = Vocabulary(
        size=len(tokenizer),
        special_ids={"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id},
        added_tokens=_added_tokens(tokenizer),
        adds_bos=_adds_bos(tokenizer),
        chat_template=_template(tokenizer),
        samples=tuple(
            Sample(text=text, ids=tuple(tokenizer.encode(text, add_special_tokens=False)))
            for text in (*AWKWARD_TEXTS, *texts)
        ),
        chats=(),
    )
    return plain if plain.reads_clock else with_chats(plain, tokenizer)


def with_chats(vocabulary: Vocabulary, tokenizer: Any) -> Vocabulary:
    """Add the conversations, but those that the template refuses: Gemma's knows no system role, for one."""
    from jinja2 import TemplateError

    if vocabulary.chat_template is None:
        return vocabulary
    rendered = []
    for name, turns, add_generation_prompt in CONVERSATIONS:
        messages = tuple(Message(role=role, content=content) for role, content in turns)
        try:
            ids = _render(tokenizer, messages, add_generation_prompt)
        except TemplateError:
            continue
        rendered.append(Chat(name=name, messages=messages, add_generation_prompt=add_generation_prompt, ids=tuple(ids)))
    return vocabulary.model_copy(update={"chats": tuple(rendered)})


def conversation(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> str:
    """Return what the chat template makes of a whole conversation, without the BOS that it may begin with.

    What is cut out of the text gets its BOS anew, and would have two. Raises ValueError with the template's words.
    """
    from jinja2 import TemplateError

    try:
        text = str(tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False))
    except (TemplateError, ValueError, TypeError, LookupError) as error:  # what templates do wrong is Python's errors
        raise ValueError(f"the checkpoint's chat template does not take it: {error}") from error
    return text.removeprefix(tokenizer.bos_token or "")


def _render(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
    plain = [message.model_dump() for message in messages]
    ids = tokenizer.apply_chat_template(
        plain, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
    )
    return [int(token) for token in ids]


def _template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    return template if isinstance(template, str) else None


def _adds_bos(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer.encode("a")[:1] == [bos]


def _added_tokens(tokenizer: Any) -> dict[str, int]:
    """Return what the tokenizer recognises by text; all but runs of U+2581, SentencePiece's sign for a space.

    Gemma lists those as added tokens, and llama.cpp's converter writes them as the spaces that they stand for.
    """
    added = {str(token): int(number) for number, token in sorted(tokenizer.added_tokens_decoder.items())}
    return {
        text: number
        for text, number in added.items()
        if text.strip("\u2581") and tokenizer.encode(text, add_special_tokens=False) == [number]
    }
