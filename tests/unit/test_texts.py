"""Text sources: what becomes a document, and what a user reads when a source is no text."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.errors import CorpusError
from pipeline.texts import stdlib
from pipeline.texts.chats import Conversation
from pipeline.texts.document import Document
from pipeline.texts.read import check, local_files, read


def texts(source: Path | str) -> list[tuple[str, str]]:
    return [(document.name, document.text) for document in read(str(source)).documents]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffGrüße\r\n\n\nzwei\n".encode())
    assert texts(path) == [("a.txt", "Grüße\n\n\nzwei\n")]


def test_a_text_may_begin_as_other_files_do(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("GGUF is a format.")
    assert texts(tmp_path / "a.txt") == [("a.txt", "GGUF is a format.")]


@pytest.mark.parametrize("name", ["notes.utf8", "README", "a.csv", "chapter.1"])
def test_utf8_is_text_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(("x" * 8191 + "ü and so on").encode())  # the ü is cut where the first bytes end
    check(str(path))
    assert texts(path) == [(name, "x" * 8191 + "ü and so on")]


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
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "old.txt").write_text("hidden")
    assert [name for name, _ in texts(tmp_path)] == ["a.txt", "b/a.md", "b/z.txt", "c.jsonl:1"]
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(CorpusError, match=r"picture\.png: is a PNG picture"):
        check(str(tmp_path))


def test_json_under_its_other_names(tmp_path: Path) -> None:
    rows = [{"text": "eins"}, {"text": None}, {"text": "zwei"}]
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "lines.ndjson").write_text("\r\n".join(map(json.dumps, rows)))
    assert texts(tmp_path / "array.json") == [("array.json:0", "eins"), ("array.json:2", "zwei")]
    assert texts(tmp_path / "lines.json") == [("lines.json:1", "eins"), ("lines.json:3", "zwei")]
    assert texts(tmp_path / "lines.ndjson") == [("lines.ndjson:1", "eins"), ("lines.ndjson:3", "zwei")]


WIKITEXT = """ \n = Dürer = \n \n He painted a hare . \n \n = = Life = = \n \n His wage was
 = 1 thaler and a house k = \n a year . \n \n = Hed PE ( band ) = \n \n They sing . \n"""


def test_wikitext_is_a_document_an_article(tmp_path: Path) -> None:
    """As in the raw files, and as on the Hub, where each line is a row."""
    (tmp_path / "wiki.test.raw").write_text(WIKITEXT)
    rows = [
        line and f"{line}\n" for line in (one.rstrip(" ") + " " * bool(one.strip()) for one in WIKITEXT.split("\n"))
    ]
    parquet.write_table(pa.table({"text": rows}), tmp_path / "test.parquet")
    for file in ("wiki.test.raw", "test.parquet"):
        first, second = texts(tmp_path / file)
        assert (first[0], second[0]) == (f"{file}: Dürer", f"{file}: Hed PE ( band )")
        assert "= 1 thaler and a house k =" in first[1]
        assert second[1].split() == ["=", "Hed", "PE", "(", "band", ")", "=", "They", "sing", "."]


@pytest.mark.parametrize(
    "text",
    [
        "= Manual =\n\nText.\n\n= Second =\n\nMore.\n",  # AsciiDoc and wikis, which have `== Section ==`
        "= Manual =\n\n== Section ==\n\n= Second =\n\nMore.\n",
        "Preface.\n\n = One = \n\n = = Part = = \n\n = Two = \n\nMore.\n",  # begins with something else
        "# One\n\n# Two\n",
        "Title\n=====\n\nText\n",
    ],
)
def test_other_headings_part_no_documents(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert texts(tmp_path / "a.txt") == [("a.txt", text)]


TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def render(conversation: Conversation) -> str:
    return "".join(f"<{message['role']}>{message['content']}" for message in conversation.messages)


def test_chat_data_is_a_document_a_conversation(tmp_path: Path) -> None:
    """In both common forms, beside plain text, and from a column of Parquet, where keys that are not there are null."""
    rows: list[dict[str, object]] = [{"messages": TALK}, {"text": "plain"}, {"conversations": SHARED}, {"messages": []}]
    parts = [{"type": "text", "text": "Hi"}]
    rows += [{"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Hello"}]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns: dict[str, object] = dict.fromkeys(("text", "messages", "conversations"))
    parquet.write_table(pa.Table.from_pylist([{**columns, **row} for row in rows[:3]]), tmp_path / "a.parquet")
    rendered = "<user>Hi<assistant>Hello"
    for file, numbers in (("a.jsonl", (1, 2, 3, 5)), ("a.parquet", (0, 1, 2))):
        check(str(tmp_path / file))
        found = read(str(tmp_path / file), render=render).documents
        wanted = [rendered, "plain", rendered, rendered][: len(numbers)]
        assert [(one.name, one.text) for one in found] == [
            (f"{file}:{number}", text) for number, text in zip(numbers, wanted, strict=True)
        ]
        assert found[0].prose == "Hi\n\nHello"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "Hi"}, "line 1: messages holds str, expected a list of messages"),
        ({"messages": ["Hi"]}, r"line 1: messages\[0\] holds str"),
        ({"messages": [{"content": "Hi"}]}, r"line 1: messages\[0\] has no role \(found content\)"),
        ({"conversations": [*SHARED, {"from": "gpt"}]}, r"line 1: conversations\[2\] has no content \(found from\)"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            r"line 1: messages\[0\]: content is no text",
        ),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, r"line 1 holds \\ud83d without its other half"),
        ({"text": "cut \ud83d"}, r"line 1 holds \\ud83d without its other half"),
        ({"messages": TALK}, "line 1: holds a conversation, and there is no chat template"),
    ],
)
def test_json_that_holds_no_text(tmp_path: Path, row: dict[str, object], message: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(CorpusError, match=rf"a\.jsonl: {message}"):
        read(str(tmp_path / "a.jsonl"))


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
        ("a.parquet", b"some text", "a.parquet: is no Parquet file, although it is called one"),
        ("a.parquet", b"PAR1 no", r"a\.parquet: cannot be read as Parquet"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(CorpusError, match=message):
        read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"%PDF-1.7\n", "is a PDF; take the text out of it"),
        (b"PK\x03\x04\x14\0", "is a zip archive, or an office document"),
        (b"\x1f\x8b\x08", "is compressed by gzip"),
        (b"\xff\xd8\xff\xe0", "is a JPEG picture"),
        ("Grüße".encode("utf-16"), "is text in UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`"),
        ("Grüße".encode("utf-32"), "is text in UTF-32; convert it with `iconv -f UTF-32"),
        ("Gruss".encode("utf-16-be"), "is no text, byte 0 is zero"),
        ("Grüße".encode("latin-1"), r"byte 2 \(0xfc\) is not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer to the file; fetch"),
    ],
)
def test_what_is_no_text_is_named_for_what_it_is_before_it_is_read(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "corpus.txt").write_bytes(raw)
    for refuse in (check, read):
        with pytest.raises(CorpusError, match=rf"corpus\.txt: {message}"):
            refuse(str(tmp_path / "corpus.txt"))


def test_the_first_line_is_looked_at_before_all_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "a"}\n')
    parquet.write_table(pa.table({"body": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(CorpusError, match=r"a\.jsonl: line 1 has no key 'text' \(found body\)"):
        check(str(tmp_path / "a.jsonl"))
    with pytest.raises(CorpusError, match=r"b\.parquet: has no column 'text'"):
        check(str(tmp_path / "b.parquet"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"body": ["a"]}, r"no column 'text' or 'messages' or 'conversations' \(found body\)"),
        ({"text": [1]}, "column 'text' holds int64"),
    ],
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
    for refuse in (check, read):
        with pytest.raises(CorpusError, match=message):
            refuse(source, revision)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="holds no file"):
        read(str(tmp_path))


def test_what_to_watch(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert local_files(str(tmp_path)) == local_files(str(tmp_path / "a.txt")) == {"a.txt": tmp_path / "a.txt"}
    assert local_files("stdlib://training") is None
    assert local_files("hf://datasets/org/name/a.txt") is None
