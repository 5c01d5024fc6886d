"""What the image carries as proof: the artifact's own record, what was measured of it, and why it was chosen."""

import json
from pathlib import Path
from typing import Any

from pipeline.records import FILE, Artifact


class Evidence:
    """Records as they were written, read once."""

    def __init__(self, artifact: Path, records: Path | None) -> None:
        self.artifact = Artifact.load(artifact / FILE)
        self._records = {"artifact": self.artifact.model_dump(mode="json")}
        for path in sorted(records.rglob("*.json")) if records else ():
            self._records[path.relative_to(records).with_suffix("").as_posix()] = json.loads(path.read_bytes())  # type: ignore[arg-type]
        for file in self.artifact.files:
            found = (artifact / file.path).stat().st_size if (artifact / file.path).is_file() else None
            if found != file.bytes:
                raise ValueError(f"{artifact / file.path}: {found} bytes, the artifact's record says {file.bytes}")

    @property
    def records(self) -> dict[str, Any]:
        """Everything, by name."""
        return self._records
