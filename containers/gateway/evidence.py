"""What a server carries as proof: the artifact's own record, what was measured of it, and why it was chosen."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.records import FILE, Artifact


class Evidence:
    """Records as they were written, read once, by name."""

    def __init__(self, artifact: Path, records: Mapping[str, Path]) -> None:
        """Read them. ValueError when a file of the artifact is not as long as its record says."""
        self.artifact = Artifact.load(artifact / FILE)
        self.records: dict[str, Any] = {"artifact": self.artifact.model_dump(mode="json")}
        for name, path in records.items():
            self.records[name] = json.loads(path.read_bytes())
        for file in self.artifact.files:
            found = (artifact / file.path).stat().st_size if (artifact / file.path).is_file() else None
            if found != file.bytes:
                raise ValueError(f"{artifact / file.path}: {found} bytes, the artifact's record says {file.bytes}")

    @classmethod
    def of_folder(cls, artifact: Path, folder: Path | None) -> "Evidence":
        """Read every .json file of a folder."""
        return cls(artifact, {path.stem: path for path in sorted(folder.glob("*.json"))} if folder else {})
