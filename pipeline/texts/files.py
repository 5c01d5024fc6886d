"""Documents out of files: one a text file, a line of JSON lines, a row of Parquet, or an article of WikiText."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import CorpusError
from pipeline.texts import chats, kinds, wikitext
from pipeline.texts.chats import Render
from pipeline.texts.document import Document
from pipeline.texts.kinds import Kind

KEY = "text"
"""The key of a JSON line, or the column of a Parquet file, that holds the text; a conversation may stand in its place,
under one of chats.KEYS. Where both are there the text is taken."""

COLUMNS = (KEY, *chats.KEYS, "tools")

ROWS = 1024
"""Parquet rows read at once."""


def documents(path: Path, name: str, render: Render) -> Iterator[Document]:
    """Yield a file's documents in its own order, those without any text left out.

    `name` stands for the file in documents' names and in errors.
    """
    if kinds.of(path, name) is Kind.TEXT:
        text = _decode(_read(path, name), name).replace("\r\n", "\n")
        found = iter([Document(name=name, text=text)])
    else:
        found = (_document(row, label, where, render) for row, label, where in _rows(path, name))
    return (document for document in wikitext.articles(found, name) if document.text.strip())


def check(path: Path, name: str) -> None:
    """Refuse a file that is no text, or whose first line or row holds none; little of it is read."""
    kind = kinds.of(path, name)
    if kind in (Kind.JSON_LINES, Kind.PARQUET):
        for row, label, where in _rows(path, name):
            _document(row, label, where, lambda conversation: conversation.prose)
            return


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{name}: cannot be read ({error.strerror})") from error


def _decode(raw: bytes, name: str, offset: int = 0) -> str:
    try:
        return raw.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        at = error.start + (3 if offset == 0 and raw.startswith(b"\xef\xbb\xbf") else 0)
        raise kinds.not_utf8(name, offset + at, raw[at]) from error


def _rows(path: Path, name: str) -> Iterator[tuple[Any, str, str]]:
    """Yield what each line or row holds, the name of the document that it is, and how errors call it."""
    match kinds.of(path, name):
        case Kind.PARQUET:
            for number, row in enumerate(_from_parquet(path, name)):
                yield row, f"{name}:{number}", f"{name}: row {number}"
        case Kind.JSON if (array := _array(path, name)) is not None:
            for number, row in enumerate(array):
                yield row, f"{name}:{number}", f"{name}: item {number}"
        case _:
            for number, row in _from_json_lines(path, name):
                yield row, f"{name}:{number}", f"{name}: line {number}"


def _from_json_lines(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = _decode(line, name, offset)
                offset += len(line)
                if not text.strip():
                    continue
                try:
                    value = json.loads(text)
                except ValueError as error:
                    raise CorpusError(f"{name}: line {number} is not JSON ({error})") from error
                yield number, value
    except OSError as error:
        raise CorpusError(f"{name}: cannot be read ({error.strerror})") from error


def _array(path: Path, name: str) -> list[Any] | None:
    """Return the items of a file that is one JSON value; None where it is JSON lines under another name."""
    try:
        value = json.loads(_decode(_read(path, name), name))
    except ValueError as error:
        if isinstance(error, CorpusError):
            raise
        return None
    return value if isinstance(value, list) else [value]


def _document(row: Any, name: str, where: str, render: Render) -> Document:
    """Make a document of a line or row. CorpusError says what it holds instead of a text or a conversation."""
    keys = [key for key in COLUMNS[:-1] if isinstance(row, Mapping) and key in row]
    if not keys:
        found = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise CorpusError(
            f"{where} has no key {KEY!r} (found {found}); expected an object with its text under {KEY!r}, or with a "
            f"conversation under {' or '.join(map(repr, chats.KEYS))}"
        )
    held = next((key for key in keys if row[key] is not None), None)
    if held is None:
        return Document(name=name, text="")
    if held == KEY:
        if not isinstance(row[KEY], str):
            raise CorpusError(f"{where}: {KEY!r} holds {type(row[KEY]).__name__}, expected a string")
        return Document(name=name, text=_encodable(row[KEY], where))
    conversation = chats.conversation(row[held], row.get("tools"), f"{where}: {held}")
    if conversation is None:
        return Document(name=name, text="")
    _encodable(conversation.prose, where)
    try:
        return Document(name=name, text=_encodable(render(conversation), where), prose=conversation.prose)
    except ValueError as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{where}: {error}") from error


def _encodable(text: str, where: str) -> str:
    """Refuse half of a surrogate pair: JSON can write it, UTF-8 cannot, and no tokenizer has an id for it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise CorpusError(
            f"{where} holds \\u{half:04x} without its other half, which is no character: the text was cut or "
            "converted wrongly; take it out"
        ) from error
    return text


def _from_parquet(path: Path, name: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            columns = [column for column in COLUMNS if column in schema.names]
            if not set(columns) - {COLUMNS[-1]}:
                known = " or ".join(map(repr, COLUMNS[:-1]))
                raise CorpusError(f"{name}: has no column {known} (found {', '.join(schema.names)})")
            if KEY in columns and not _is_text(schema.field(KEY).type):
                raise CorpusError(f"{name}: column {KEY!r} holds {schema.field(KEY).type}, expected strings")
            for batch in file.iter_batches(ROWS, columns=columns):
                yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{name}: holds text that is not UTF-8 ({error.reason})") from error
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{name}: cannot be read as Parquet ({error}); download it again") from error


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
