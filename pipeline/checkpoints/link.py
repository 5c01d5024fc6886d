"""The checkpoint's folder as later stages see it: links to the checked files, wherever those lie."""

import os
from pathlib import Path

from pipeline import digests
from pipeline.checkpoints.obtain import obtain
from pipeline.errors import CheckpointError
from pipeline.records import Checkpoint, File


def link(checkpoint: Checkpoint, folder: Path, out: Path) -> None:
    """Fill `out` with absolute links to the recorded files in `folder`; links to anything else are removed.

    Nothing is linked unless every file is there with its recorded size. Each link replaces an older one in one step, so
    stages that run side by side may all do this. The record (`assay.json`) and other plain files stay as they are.
    """
    targets = {file.path: (folder / file.path).resolve() for file in checkpoint.files}
    for file in checkpoint.files:
        _require_size(checkpoint, file, targets[file.path])
    out.mkdir(parents=True, exist_ok=True)
    for path, target in targets.items():
        place = out / path
        if place.is_symlink() and place.readlink() == target:
            continue
        fresh = out / f".{path}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(place)
    for stray in out.iterdir():
        if stray.is_symlink() and stray.name not in targets and not stray.name.startswith("."):
            stray.unlink()


def ensure(checkpoint: Checkpoint, source: str, out: Path) -> Path:
    """Return `out` with its links whole, obtaining the files again at the recorded revision where they are gone.

    That is the case after a fresh clone whose stages came out of DVC's cache, and after the Hub's cache was moved.
    Raises CheckpointError where the files found are not those of the record.
    """
    if all(_has_size(out / file.path, file.bytes) for file in checkpoint.files):
        return out
    for file in checkpoint.files:
        if (out / file.path).is_file():
            _require_size(checkpoint, file, out / file.path)
    obtained = obtain(source, checkpoint.revision)
    for file in checkpoint.files:
        path = obtained.folder / file.path
        _require_size(checkpoint, file, path)
        if digests.of_file_memoised(path) != file.sha256:
            raise _changed(checkpoint, file, f"{path} holds other bytes of the same length")
    link(checkpoint, obtained.folder, out)
    return out


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _require_size(checkpoint: Checkpoint, file: File, path: Path) -> None:
    if not path.is_file():
        raise _changed(checkpoint, file, f"{path} is not there")
    found = path.stat().st_size
    if found != file.bytes:
        raise _changed(checkpoint, file, f"{path} has {found} bytes")


def _changed(checkpoint: Checkpoint, file: File, found: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.source}: {found}, the record made when it was checked says {file.bytes} bytes with sha256 "
        f"{file.sha256[:12]}…; put the old file back, or run `dvc repro -f checkpoint` to check the new one"
    )
