"""The tokenizer against the embedding: every id that text can give must have a row."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.checkpoints import tokenizer
from pipeline.checkpoints.weights import Entry
from pipeline.errors import CheckpointError

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
"""How architectures name the table that token ids index."""

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""One of these holds the vocabulary."""


def check(folder: Path, entries: Iterable[Entry], size: int, source: str) -> int | None:
    """Refuse a tokenizer that is missing, cannot be opened, or gives ids beyond the vocabulary of `size`.

    Return the token with which it ends a text, if it has one.
    """
    rows = {entry.shape[0] for entry in entries if entry.name.endswith(EMBEDDINGS) and len(entry.shape) == 2}
    if rows and size not in rows:
        raise CheckpointError(
            f"{source}: config.json says vocab_size {size}, the embedding has {max(rows)} rows; config.json and "
            "weights are of different versions: download both again"
        )
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
