"""Text sources: what becomes a document, and what a user reads when a source is no text."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.errors import CorpusError
from pipeline.texts import stdlib
from pipeline.texts.document import Document
from pipeline.texts.read import local_path, read


def texts(source: Path | str) -> list[tuple[str, str]]:
    return [(document.name, document.text) for document in read(str(source)).documents]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffGrüße\r\n\n\nzwei\n".encode())
    assert texts(path) == [("a.txt", "Grüße\r\n\n\nzwei\n")]


def test_json_lines_are_one_document_each(tmp_path: Path) -> None:
    """A line separator of Unicode's inside a string does not end a line of JSON lines."""
    path = tmp_path / "a.jsonl"
    lines = [{"text": "eins\u2028noch eins", "id": 1}, {"text": "  "}, {"text": "zwei"}]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n", encoding="utf-8")
    assert texts(path) == [("a.jsonl:1", "eins\u2028noch eins"), ("a.jsonl:3", "zwei")]


def test_parquet_rows_are_one_document_each(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [f"row {n}" for n in range(2500)]
    rows[7] = ""
    parquet.write_table(pa.table({"id": list(range(2500)), "text": [*rows[:9], None, *rows[10:]]}), path)
    found = texts(path)
    assert len(found) == 2498
    assert found[7] == ("a.parquet:8", "row 8")
    assert found[-1] == ("a.parquet:2499", "row 2499")


def test_a_folder_in_the_order_of_paths(tmp_path: Path) -> None:
    for name in ("b/z.txt", "b/a.md", "a.txt", "c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "line"}' if name.endswith("jsonl") else name)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "old.txt").write_text("hidden")
    assert [name for name, _ in texts(tmp_path)] == ["a.txt", "b/a.md", "b/z.txt", "c.jsonl:1"]


def test_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training must never come where evaluation was asked for; what the splits hold is tested with their module."""

    def documents(split: str) -> Iterator[Document]:
        yield Document(name=split, text=split)

    monkeypatch.setattr(stdlib, "documents", documents)
    assert texts("stdlib://training") == [("training", "training")]
    assert texts("stdlib://evaluation") == [("evaluation", "evaluation")]


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.txt", b"abc\xe4de", r"a\.txt: byte 3 \(0xe4\) is not UTF-8"),
        ("a.txt", b"\xef\xbb\xbfab\xff", r"a\.txt: byte 5 \(0xff\) is not UTF-8"),
        ("a.jsonl", b'{"text": "ab"}\n{"text": "\xe4"}\n', r"a\.jsonl: byte 25 \(0xe4\) is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"content": "b"}\n', r"a\.jsonl: line 2 has no key 'text' \(found content\)"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', r"a\.jsonl: line 2 has no key 'text' \(found list\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 5}\n', r"a\.jsonl: line 2: 'text' holds int"),
        ("a.jsonl", b'\n{"text": "a"\n', r"a\.jsonl: line 2 is not JSON"),
        ("a.txt", b" \n\t", "holds no text"),
        ("a.jsonl", b"", "holds no text"),
        ("a.pdf", b"%PDF", r"\.pdf is no known kind of text; expected \.txt"),
        ("a.parquet", b"PAR1 no", r"a\.parquet: cannot be read as Parquet"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(CorpusError, match=message):
        read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("table", "message"),
    [({"body": ["a"]}, r"no column 'text' \(found body\)"), ({"text": [1]}, "column 'text' holds int64")],
)
def test_parquet_without_text(tmp_path: Path, table: dict[str, list[object]], message: str) -> None:
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=message):
        read(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("absent.txt", None, "no such file or folder"),
        ("std://training", None, r"unknown kind std://; did you mean stdlib://training\?"),
        ("https://host/a.txt", None, "unknown kind https://"),
        ("file:///a.txt", None, "without file://"),
        ("stdlib://test", None, "expected stdlib://training or stdlib://evaluation"),
        ("hf://org/name", None, "is no dataset; expected hf://datasets/"),
        ("hf://datasets/org/name", None, "the path being a file, a folder or a pattern"),
        ("a.txt", "main", "revision 'main' has no meaning here"),
    ],
)
def test_sources_that_make_no_sense(source: str, revision: str | None, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read(source, revision)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="holds no file of text"):
        read(str(tmp_path))


def test_what_to_watch() -> None:
    assert local_path("texts/a.txt") == Path("texts/a.txt")
    assert local_path("stdlib://training") is None
    assert local_path("hf://datasets/org/name/a.txt") is None
    with pytest.raises(CorpusError, match="did you mean"):
        local_path("stdlb://training")
