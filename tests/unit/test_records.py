"""What a record says of a file that is none of its kind."""

import json
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.records import File

GOOD = {"path": "weights", "bytes": 1, "sha256": "ab"}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (json.dumps({**GOOD, "bytes": "many"}), "bytes: "),
        (json.dumps({**GOOD, "colour": "red"}), "colour: "),
        (json.dumps({"path": "weights", "bytes": 1}), "sha256: "),
        (json.dumps([GOOD]), "object"),
        ("half of a reco", "Invalid JSON"),
        (json.dumps({f"unknown{number}": 0 for number in range(40)}), "and 40 more"),  # of 43, with what is missing
    ],
)
def test_what_is_wrong_with_a_record_is_one_short_line(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "assay.json"
    path.write_text(content)
    with pytest.raises(StorageError) as caught:
        File.load(path)
    said = str(caught.value).removeprefix(f"{path}: not a File record ")
    assert named in said
    assert "\n" not in said
    assert len(said) < 200
