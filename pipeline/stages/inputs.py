"""What lies outside the repository and can change without DVC noticing: this machine, and folders named in params.yaml.

The only stage that always runs; it reads no weights that it has read before, and when nothing changed its outputs are
the same bytes, so every later stage skips.
"""

from pathlib import Path

from pipeline import digests, machine, paths
from pipeline.errors import ParamsError
from pipeline.params import Params
from pipeline.records import File, Source, Sources
from pipeline.texts import read


def inputs(params: Params) -> None:
    """Write inputs/machine.json, inputs/checkpoint.json and inputs/texts.json."""
    machine.fingerprint().save(paths.MACHINE)
    folder = None if params.checkpoint.source.startswith("hf://") else Path(params.checkpoint.source)
    _state("checkpoint.source", params.checkpoint.source, folder).save(paths.CHECKPOINT_SOURCE)
    texts = params.corpus.calibration, params.corpus.evaluation
    calibration, evaluation = (_state("corpus", text.source, read.local_path(text.source)) for text in texts)
    Sources(calibration=calibration, evaluation=evaluation).save(paths.TEXT_SOURCES)


def _state(key: str, source: str, path: Path | None) -> Source:
    if path is None:
        return Source(source=source, digest=None)
    if not path.exists():
        raise ParamsError(f"{key}: {source} does not exist; give an existing path, hf://... or stdlib://...")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    listed = (
        File(path=str(file.relative_to(path)), bytes=file.stat().st_size, sha256=digests.of_file_memoised(file))
        for file in files
    )
    return Source(source=source, digest=digests.of_files(listed))
