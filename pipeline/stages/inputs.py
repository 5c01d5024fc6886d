"""What can change without DVC noticing: this machine, folders that params.yaml names, code and the tools it uses.

The only stage that always runs; it reads no file that it has read before, and when nothing changed its outputs are the
same bytes, so every later stage skips.
"""

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipeline import digests, fingerprints, machine, paths, progress
from pipeline.checkpoints import layout
from pipeline.errors import CheckpointError
from pipeline.images import state
from pipeline.params import Params, TextParams
from pipeline.records import File, Gpu, Hardware, Source, Sources
from pipeline.texts import read


def inputs(params: Params) -> None:
    """Write inputs/: what `outside` writes, and code/."""
    outside(params)
    _code({recipe.backend for recipe in params.artifacts.values()})


def outside(params: Params) -> None:
    """Write machine.json, hardware/, checkpoint.json, texts.json, revision.json and builders.json in inputs/."""
    fingerprint = machine.fingerprint()
    fingerprint.save(paths.MACHINE)
    _hardware(params, fingerprint.gpus)
    state.revision().save(paths.REVISION)
    state.here().save(paths.BUILDERS)
    _checkpoint(params.checkpoint.source).save(paths.CHECKPOINT_SOURCE)
    calibration, evaluation = map(_text, (params.corpus.calibration, params.corpus.evaluation))
    Sources(calibration=calibration, evaluation=evaluation).save(paths.TEXT_SOURCES)


def _hardware(params: Params, gpus: Sequence[Gpu]) -> None:
    """Write a record for each artifact: those that need no GPU have the same on every machine, and skip."""
    shutil.rmtree(paths.HARDWARE, ignore_errors=True)
    for name, recipe in params.artifacts.items():
        lacks = recipe.lacks(gpus)
        strict = lacks is not None and bool(os.environ.get("ASSAY_STRICT"))
        architecture = gpus[0].compute_capability if recipe.bound_to_gpu and lacks is None else None
        Hardware(name=name, lacks=lacks, strict=strict, compute_capability=architecture).save(paths.hardware(name))


def _code(backends: Collection[str]) -> None:
    """Write a record for each stage: of all that a stage depends on, DVC watches by itself neither code nor tools."""
    shutil.rmtree(paths.CODE, ignore_errors=True)
    for record in fingerprints.records(backends):
        record.save(paths.code(record.name))


def _checkpoint(source: str) -> Source:
    if source.startswith("hf://"):
        return Source(source=source, digest=None)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint.source: {source} is no folder; give a folder, or hf://org/name for the Hub")
    names = {path.name for path in folder.iterdir() if path.is_file()}
    # Only what the checkpoint stage would take: a model card or a second copy as pickle changes nothing.
    wanted = {layout.CONFIG, *layout.side_files(names)} & names
    wanted |= {name for name in names if name.endswith(".safetensors")}
    return Source(source=source, digest=_digest(source, {name: folder / name for name in sorted(wanted)}))


def _text(text: TextParams) -> Source:
    """Note the state of a text; what is none is refused here, before the checkpoint is read."""
    read.check(text.source, text.revision)
    local = read.local_files(text.source, text.revision)
    return Source(source=text.source, digest=None if local is None else _digest(text.source, local))


def _digest(source: str, files: Mapping[str, Path]) -> str:
    listed = []
    sizes = {name: file.stat().st_size for name, file in files.items()}
    with progress.bytes_bar(f"looking at {source}", sum(sizes.values())) as bar:
        for name, size in sizes.items():
            sha256 = digests.of_file_memoised(files[name])
            listed.append(File(path=name, bytes=size, sha256=sha256))
            bar.update(size)
    return digests.of_files(listed)
