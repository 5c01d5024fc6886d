"""The tokenizer against the vocabulary: every id that text can give must have a row of the embedding."""

from pathlib import Path
from typing import Any

from pipeline.checkpoints import tokenizer
from pipeline.errors import CheckpointError

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""One of these holds the vocabulary."""


def check(folder: Path, size: int, source: str) -> int | None:
    """Refuse a tokenizer that is missing, cannot be opened, or gives ids beyond the vocabulary of `size`.

    Return the token with which it ends a text, if it has one.
    """
    if not any((folder / name).is_file() for name in FILES):
        raise CheckpointError(f"{source}: has no tokenizer; expected one of {', '.join(FILES)}")
    loaded = _load(folder, source)
    ids: dict[str, int] = loaded.get_vocab()  # added tokens included
    if not ids:
        raise CheckpointError(f"{source}: its tokenizer has an empty vocabulary")
    text, highest = max(ids.items(), key=lambda item: item[1])
    if highest >= size:
        raise CheckpointError(
            f"{source}: its tokenizer gives id {highest} for {text!r}, the vocabulary ends at {size - 1}; the "
            "tokenizer is of another model, or the embedding was not resized after tokens were added"
        )
    return None if loaded.eos_token_id is None else int(loaded.eos_token_id)


def _load(folder: Path, source: str) -> Any:
    try:
        return tokenizer.load(folder)
    except Exception as error:
        # The parsers below (Rust's tokenizers among them) raise bare Exception for a broken file.
        raise CheckpointError(
            f"{source}: its tokenizer cannot be opened by transformers: {type(error).__name__}: {error}"
        ) from error
