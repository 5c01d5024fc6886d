"""Everything that can be wrong with a checkpoint, found before any conversion begins, the cheap checks first."""

from collections.abc import Iterable, Mapping

from pipeline import digests, progress
from pipeline.checkpoints import config, layout, match, vocabulary, weights
from pipeline.checkpoints.config import Refusals
from pipeline.checkpoints.obtain import Obtained
from pipeline.checkpoints.weights import Entry
from pipeline.errors import CheckpointError
from pipeline.records import Checkpoint, File


def check(obtained: Obtained, source: str, refusals: Refusals) -> Checkpoint:
    """Return the record of a sound checkpoint; CheckpointError names the file and what is wrong with it.

    `refusals` gives, for a config.json, each wanted artifact's reason against it. Weights are read once, for digest and
    finiteness together; only files that belong to the checkpoint are recorded.
    """
    folder = obtained.folder
    names = {path.name for path in folder.iterdir() if path.is_file()}
    layout.require_safetensors(names, source)
    settings = config.check(folder, source, refusals)
    index = layout.weight_map(folder, names, source)
    shards = sorted(set(index.values())) if index else [layout.SINGLE]
    headers = {shard: weights.read_header(folder / shard, source) for shard in shards}
    weights.check_names(headers, index, source)
    entries = [entry for shard in shards for entry in headers[shard]]
    size = config.vocabulary_size(settings, source)
    match.check(settings, names, entries, source)  # before a tokenizer is opened, which may hide torch from here on
    end = vocabulary.check(folder, size, source)
    context = config.context_tokens(settings, folder, source)
    files = _read(obtained, headers, layout.side_files(names), source)
    return Checkpoint(
        source=source,
        revision=obtained.revision,
        architecture=str(settings["architectures"][0]),
        dtype=weights.common_dtype(entries),
        parameters=sum(entry.parameters for entry in entries),
        vocabulary_size=size,
        context_tokens=context,
        end_ids=tuple(dict.fromkeys((*config.eos_ids(settings, folder, source), *([] if end is None else [end])))),
        files=files,
        digest=digests.of_files(files),
    )


def _read(
    obtained: Obtained, headers: Mapping[str, tuple[Entry, ...]], side_files: Iterable[str], source: str
) -> tuple[File, ...]:
    """Read every byte once and compare with the Hub's digests; refuse NaN and Inf."""
    folder = obtained.folder
    small = sorted({layout.CONFIG, *side_files})
    found = {name: digests.of_file_memoised(folder / name) for name in small}
    for name in small:
        _compare(obtained, name, found[name], source)
    total = sum((folder / shard).stat().st_size for shard in headers)
    with progress.bytes_bar(f"checkpoint: reading {source}", total) as bar:
        for done, (shard, entries) in enumerate(headers.items()):
            bar.set_postfix_str(f"file {done + 1}/{len(headers)} {shard}", refresh=False)
            found[shard], bad = weights.read_through(folder / shard, entries, source, bar.update)
            _compare(obtained, shard, found[shard], source)
            if bad is not None:
                raise CheckpointError(
                    f"{source}: {shard}: tensor {bad.name} ({bad.dtype}) holds NaN or Inf; no artifact made from it "
                    "could answer sensibly: name another checkpoint or revision"
                )
    return tuple(File(path=name, bytes=(folder / name).stat().st_size, sha256=found[name]) for name in sorted(found))


def _compare(obtained: Obtained, name: str, sha256: str, source: str) -> None:
    """Refuse a file that is not what the Hub lists, and drop it from the cache: it was damaged on this disk."""
    expected = obtained.hub_sha256.get(name, sha256)
    if sha256 == expected:
        return
    from pipeline import hub

    hub.forget(obtained.folder / name)
    raise CheckpointError(
        f"{source}: {name} has sha256 {sha256}, the Hub lists {expected}; the damaged file was dropped from the cache: "
        "run again to download it anew, and check the disk"
    )
