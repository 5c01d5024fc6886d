"""One document of a corpus."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A piece of text that no window may reach beyond."""

    name: str
    text: str
    prose: str | None = None
    """What was said, where `text` is a conversation with a chat template's marks around it; None where they are one."""
