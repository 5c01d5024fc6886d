"""What every record is."""

import json
import math
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import StorageError

FILE = "assay.json"
"""The name of the record inside every folder that a stage writes."""


class Record(BaseModel):
    """A value with a JSON form. Equal records give equal bytes."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_name=True,
        serialize_by_alias=True,
        defer_build=True,
    )

    def save(self, path: Path) -> None:
        """Write the record as indented JSON with a final newline, at once or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record; StorageError names the file when it is missing or is none of ours."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise StorageError(f"{path}: cannot be read ({error.strerror}); run `dvc repro` to make it") from error
        except ValidationError as error:
            raise StorageError(f"{path}: not a {cls.__name__} record ({problems(error)})") from error


def problems(error: ValidationError) -> str:
    """Say in one line which keys are wrong, the first three of them."""
    found = [": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in error.errors()]
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


class Failure(Record):
    """Why a stage came to no result for an artifact, while the run went on: what the row of the report tells."""

    stage: str
    """The stage that failed; later ones carry it on."""
    artifact: str
    """The artifact that failed: another one where this one was built from that."""
    reason: str
    """One line."""
    exit_code: int
    """The exit code of a class in pipeline.errors, or 1 for an error that nobody foresaw."""
    log: tuple[str, ...] = ()
    """What was printed last, and the stack where there is one."""

    @property
    def words(self) -> str:
        """What became of the artifact, in one line."""
        return f"failed in `{self.stage}@{self.artifact}`: {self.reason}"

    @property
    def again(self) -> str:
        """The command that tries the stage again; `dvc repro` then does what depends on it."""
        return f"dvc repro --force --single-item {self.stage}@{self.artifact}"


class File(Record):
    """One file of a folder."""

    path: str
    bytes: int
    sha256: str


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces; raises on anything without one stable form, NaN and Infinity included."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} has no JSON form")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
