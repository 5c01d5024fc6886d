"""Documents out of files: one a text file, one a line of JSON lines, one a row of Parquet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import CorpusError
from pipeline.texts.document import Document

KEY = "text"
"""The key of a JSON line, or the column of a Parquet file, that holds the text."""

SUFFIXES = (".txt", ".md", ".raw", ".jsonl", ".parquet")

ROWS = 1024
"""Parquet rows read at once."""


def documents(path: Path, name: str) -> Iterator[Document]:
    """Yield a file's documents in its own order, those without any text left out.

    `name` stands for the file in documents' names and in errors, since a file from the Hub lies under a digest.
    """
    require_known(path.name, name)
    match path.suffix.lower():
        case ".jsonl":
            found = _from_json_lines(path, name)
        case ".parquet":
            found = _from_parquet(path, name)
        case _:
            found = iter([Document(name=name, text=_decode(_read(path, name), name))])
    return (document for document in found if document.text.strip())


def require_known(file: str, name: str) -> None:
    """Refuse a file whose suffix tells no kind of text that is read here."""
    suffix = Path(file).suffix.lower()
    if suffix not in SUFFIXES:
        raise CorpusError(f"{name}: {suffix or 'no suffix'} is no known kind of text; expected {', '.join(SUFFIXES)}")


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{name}: cannot be read ({error.strerror})") from error


def _decode(raw: bytes, name: str, offset: int = 0) -> str:
    try:
        return raw.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start + (3 if offset == 0 and raw.startswith(b"\xef\xbb\xbf") else 0)
        raise CorpusError(
            f"{name}: byte {at} (0x{raw[at - offset]:02x}) is not UTF-8; convert it, for example with `iconv -t UTF-8`"
        ) from error


def _from_json_lines(path: Path, name: str) -> Iterator[Document]:
    offset = 0
    for number, line in enumerate(_read(path, name).split(b"\n"), start=1):
        text = _decode(line, name, offset)
        offset += len(line) + 1
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except ValueError as error:
            raise CorpusError(f"{name}: line {number} is not JSON ({error})") from error
        yield Document(name=f"{name}:{number}", text=_text_of(value, f"{name}: line {number}"))


def _text_of(value: Any, where: str) -> str:
    if not isinstance(value, dict) or KEY not in value:
        keys = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise CorpusError(
            f"{where} has no key {KEY!r} (found {keys}); expected one object a line, its text under {KEY!r}"
        )
    text = value[KEY]
    if not isinstance(text, str):
        raise CorpusError(f"{where}: {KEY!r} holds {type(text).__name__}, expected a string")
    return text


def _from_parquet(path: Path, name: str) -> Iterator[Document]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            if KEY not in file.schema_arrow.names:
                raise CorpusError(f"{name}: has no column {KEY!r} (found {', '.join(file.schema_arrow.names)})")
            kind = file.schema_arrow.field(KEY).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise CorpusError(f"{name}: column {KEY!r} holds {kind}, expected strings")
            row = 0
            for batch in file.iter_batches(ROWS, columns=[KEY]):
                for text in batch.column(0).to_pylist():
                    yield Document(name=f"{name}:{row}", text=text or "")
                    row += 1
    except UnicodeDecodeError as error:
        raise CorpusError(f"{name}: column {KEY!r} holds text that is not UTF-8 ({error.reason})") from error
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{name}: cannot be read as Parquet ({error}); download it again") from error
