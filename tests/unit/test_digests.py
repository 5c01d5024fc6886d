"""Files held against what a record says of them."""

from pathlib import Path

import pytest

from pipeline import digests
from pipeline.errors import StorageError


def test_files_that_changed_after_their_record_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "artifact"
    folder.mkdir()
    weights, config = folder / "model.gguf", folder / "config.json"
    weights.write_bytes(b"0123456789")
    config.write_text("{}")
    files = digests.list_files(folder)
    digests.check_files(folder, files)
    weights.write_bytes(b"0123456798")
    with pytest.raises(StorageError, match=r"model.gguf: was truncated or altered after it was made"):
        digests.check_files(folder, files)
    weights.write_bytes(b"01234")
    with pytest.raises(StorageError, match=r"model.gguf: was truncated or altered"):
        digests.check_files(folder, files)
    weights.write_bytes(b"0123456789")
    config.unlink()
    with pytest.raises(StorageError, match=r"config.json: is missing"):
        digests.check_files(folder, files)
