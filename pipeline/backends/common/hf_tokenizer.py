"""The tokenizer of an artifact that keeps the checkpoint's Hugging Face tokenizer files."""

from pathlib import Path
from typing import Any, cast

from pipeline.backends.contract import Tokenizer


def load(folder: Path) -> Any:
    """Open a folder's tokenizer through transformers, from its files alone."""
    from transformers import AutoTokenizer

    return cast(Any, AutoTokenizer).from_pretrained(folder, local_files_only=True)


def describe(folder: Path) -> Tokenizer:
    """Return the structural checks' view of a folder's tokenizer."""
    tokenizer = load(folder)
    template = tokenizer.chat_template
    return Tokenizer(
        encode=lambda text: list(tokenizer.encode(text, add_special_tokens=False)),
        vocabulary_size=len(tokenizer),
        special_ids={"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id},
        chat_template=template if isinstance(template, str) else None,
    )
