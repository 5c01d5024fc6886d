"""Conversations as data sets hold them, brought into the form that chat templates take."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import CorpusError

KEYS = ("messages", "conversations")
"""Keys or columns that hold a conversation: a list of messages."""

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "model": "assistant"}
"""Roles of the from/value form that templates know by another name; others stay as they are."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one document of chat data holds."""

    messages: tuple[Mapping[str, Any], ...]
    """Each with `role` and `content`, and whatever else the data has for the template."""
    tools: Sequence[Any] | None

    @property
    def prose(self) -> str:
        """What was said, a paragraph a message."""
        return "\n\n".join(message["content"] for message in self.messages if message["content"])


Render = Callable[[Conversation], str]
"""A conversation to the text that the checkpoint's chat template makes of it. ValueError says why it cannot."""


def conversation(value: Any, tools: Any, where: str) -> Conversation | None:
    """Check one conversation; None for an empty one. CorpusError names the message that is not as expected."""
    if not isinstance(value, list):
        raise CorpusError(f"{where} holds {type(value).__name__}, expected a list of messages")
    messages = tuple(_message(one, f"{where}[{number}]") for number, one in enumerate(value))
    return Conversation(messages, tools if isinstance(tools, list) and tools else None) if messages else None


def _message(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CorpusError(f"{where} holds {type(value).__name__}, expected an object with role and content")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if not isinstance(role, str):
        raise CorpusError(f"{where} has no role (found {', '.join(map(str, value))}); expected role and content")
    # A column of Parquet has every key in each message, and null where one does not apply.
    others = {key: item for key, item in value.items() if item is not None and key not in ("from", "value")}
    if content is None and not others.get("tool_calls"):
        raise CorpusError(f"{where} has no content (found {', '.join(map(str, value))}); expected role and content")
    return {**others, "role": ROLES.get(role, role), "content": _text(content, where)}


def _text(content: Any, where: str) -> str:
    """Return a message's text, whose parts may be listed as OpenAI's API has them."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise CorpusError(f"{where}: content is no text; pictures and sound cannot be used")
    return "".join(map(str, texts))
