"""A Model from a folder, a config.json alone, or the Hub, of which config.json and headers are fetched, no weights."""

import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.checkpoints import architecture, layout, match
from pipeline.checkpoints.config import is_quantized
from pipeline.checkpoints.obtain import SCHEME, repository
from pipeline.checkpoints.weights import LENGTH_BYTES, Entry, entries, header_bytes, read_header
from pipeline.errors import CheckpointError
from pipeline.sizing.model import Model, joined

REQUESTS = 8
"""At once, for the headers of shards."""


def model(source: str, revision: str | None = None) -> Model:
    """Read hf://org/name, a folder, or a config.json. Raises CheckpointError or HubError.

    The tensors of a folder or a repository are held against the architecture, unless config.json says that they are
    quantized: then they are not what the architecture creates.
    """
    if source.startswith(SCHEME):
        return _hub(source, revision)
    path = Path(source).expanduser()
    if path.is_dir():
        return folder(path, source, matched=True)
    if not path.is_file():
        raise CheckpointError(
            f"{source}: is not there; expected a folder with a config.json, a config.json, or {SCHEME}org/name"
        )
    return counted(source, layout.read_json(path, source))


def folder(path: Path, source: str | None = None, *, matched: bool = False) -> Model:
    """Read a folder; its weights' shapes are counted from config.json where there are no weights.

    With `matched`, weights must be those of the architecture, as the checkpoint stage holds them to be.
    """
    source = source or str(path)
    names = {one.name for one in path.iterdir() if one.is_file()}
    config = layout.read_json(path / layout.CONFIG, source)
    companions = sum((path / name).stat().st_size for name in layout.side_files(names) if name != layout.INDEX)
    if not {layout.SINGLE, layout.INDEX} & names:
        if any(name.endswith(".safetensors") for name in names):
            layout.require_safetensors(names, source)
        return counted(source, config, companions)
    index = layout.weight_map(path, names, source)
    shards = sorted(set(index.values())) if index else [layout.SINGLE]
    found = [entry for shard in shards for entry in read_header(path / shard, source)]
    if matched:
        _match(config, names, found, source)
    return Model(source, config, joined(found), companions)


def _match(config: Mapping[str, Any], names: Collection[str], entries: Sequence[Entry], source: str) -> None:
    if not is_quantized(config):
        match.check(config, names, entries, source)


def counted(source: str, config: dict[str, Any], companions: int = 0) -> Model:
    """Count from config.json alone; CheckpointError for an architecture whose shapes are not known here."""
    return Model(source, config, joined(architecture.tensors(config, source)), companions, counted=True)


def _hub(source: str, revision: str | None) -> Model:
    from pipeline import hub

    name, _, inline = source.partition("@")
    found = hub.snapshot(repository(name), inline or revision)
    files = {file.path: file for file in found.files}
    if layout.CONFIG not in files:
        layout.require_safetensors(files.keys(), source)
    config = layout.read_json(hub.download(found, files[layout.CONFIG]), source)
    companions = sum(files[path].bytes for path in layout.side_files(files.keys()) if path != layout.INDEX)
    if not {layout.SINGLE, layout.INDEX} & files.keys():
        return counted(source, config, companions)
    shards = [layout.SINGLE]
    if layout.INDEX in files:
        index = json.loads(hub.download(found, files[layout.INDEX]).read_bytes())
        shards = sorted(set(index["weight_map"].values()))

    def header(shard: str) -> tuple[Entry, ...]:
        size, where = files[shard].bytes, f"{source}: {shard}"
        length = header_bytes(hub.part(found, files[shard], 0, LENGTH_BYTES), size, where)
        return entries(hub.part(found, files[shard], LENGTH_BYTES, LENGTH_BYTES + length), size, where)

    with ThreadPoolExecutor(REQUESTS) as requests:
        tensors = [entry for one in requests.map(header, shards) for entry in one]
    _match(config, files.keys(), tensors, source)
    return Model(source, config, joined(tensors), companions)
