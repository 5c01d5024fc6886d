"""What kind of file a source of text is, told by its first bytes and not by its name."""

import codecs
from enum import Enum
from pathlib import Path

from pipeline.errors import CorpusError

LOOKED_AT_BYTES = 8192

PARQUET = b"PAR1"

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
JSON_SUFFIX = ".json"
SUFFIXES = (".txt", ".md", ".raw", JSON_SUFFIX, *JSON_LINES_SUFFIXES, ".parquet")
"""The usual names of files that are read here; others are looked into."""

LFS = "a Git LFS pointer to the file"
MARKUP = {
    b"version https://git-lfs.github.com/": LFS,
    b"%PDF-": "a PDF",
    b"{\\rtf": "an RTF document",
}
"""How files begin that are text, or may be to the eye, but not the text that somebody wrote."""

UTF_16 = "text in UTF-16"
UTF_32 = "text in UTF-32"
SIGNATURES = {
    codecs.BOM_UTF32_LE: UTF_32,  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: UTF_32,
    codecs.BOM_UTF16_LE: UTF_16,
    codecs.BOM_UTF16_BE: UTF_16,
    b"PK\x03\x04": "a zip archive, or an office document or e-book, which are such archives",
    b"PK\x05\x06": "an empty zip archive",
    b"\xd0\xcf\x11\xe0": "an old office document",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"RIFF": "a RIFF file, which holds sound, a film or a picture",
    b"ID3": "an MP3 file",
    b"OggS": "an Ogg file",
    b"fLaC": "a FLAC file",
    b"\x7fELF": "a program",
    b"MZ\x90": "a program",
    b"SQLite format 3": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"Obj\x01": "an Avro file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
}
"""How files begin that are no text in UTF-8, and what they are. A text may begin so, too: `GGUF is a format ...`."""

REMEDIES = {
    UTF_16: "convert it with `iconv -f UTF-16 -t UTF-8`",
    UTF_32: "convert it with `iconv -f UTF-32 -t UTF-8`",
    LFS: "fetch the file with `git lfs pull`",
    "an Arrow file": "save it as Parquet",
    "an Arrow stream": "save it as Parquet",
}

EXPECTED = "expected text in UTF-8, whatever its name, JSON lines or Parquet"


class Kind(Enum):
    """How a file is read."""

    TEXT = "text"
    JSON_LINES = "JSON lines"
    JSON = "JSON"
    PARQUET = "Parquet"


def of(path: Path, name: str) -> Kind:
    """Tell a file's kind. CorpusError for what is no text says what it is; `name` stands for the file."""
    try:
        with path.open("rb") as file:
            head = file.read(LOOKED_AT_BYTES)
    except OSError as error:
        raise CorpusError(f"{name}: cannot be read ({error.strerror})") from error
    suffix = Path(name).suffix.lower()
    if head.startswith(PARQUET) and (suffix == ".parquet" or b"\0" in head):  # a text may begin so, too
        return Kind.PARQUET
    _require_text(head, name)
    if suffix == ".parquet":
        raise CorpusError(f"{name}: is no Parquet file, although it is called one; rename it, or download it again")
    if suffix in JSON_LINES_SUFFIXES:
        return Kind.JSON_LINES
    return Kind.JSON if suffix == JSON_SUFFIX else Kind.TEXT


def _require_text(head: bytes, name: str) -> None:
    zero = head.find(b"\0")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
        wrong = None
    except UnicodeDecodeError as error:
        wrong = error.start
    signatures = MARKUP if zero < 0 and wrong is None else MARKUP | SIGNATURES
    for signature, what in signatures.items():
        if head.startswith(signature):
            raise CorpusError(f"{name}: is {what}; {REMEDIES.get(what, 'take the text out of it')} ({EXPECTED})")
    if zero >= 0:
        raise CorpusError(f"{name}: is no text, byte {zero} is zero ({EXPECTED}; UTF-16 is converted by `iconv`)")
    if wrong is not None:
        raise not_utf8(name, wrong, head[wrong])


def not_utf8(name: str, at: int, byte: int) -> CorpusError:
    """Say where a file stops being UTF-8."""
    return CorpusError(
        f"{name}: byte {at} (0x{byte:02x}) is not UTF-8; convert it, for example with `iconv -f LATIN1 -t UTF-8`"
    )
