"""Writing a checkpoint in one dtype, a block at a time: memory does not grow with a tensor, a file or a model."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pipeline.backends.common import stored
from pipeline.backends.contract import Built
from pipeline.checkpoints import layout
from pipeline.checkpoints.weights import BITS, BLOCK_BYTES, NAMES, Entry, read_header
from pipeline.errors import BuildError
from pipeline.progress import track

CODES = {"bfloat16": "BF16", "float16": "F16"}
"""As a safetensors header names them."""


def build(dtype: str, checkpoint: Path, out: Path) -> Built:
    """Fill `out`: files whose floats all have this dtype byte for byte, others converted, integers left alone.

    BuildError names a tensor whose values the dtype cannot hold.
    """
    shards = stored.files(checkpoint)
    headers = {path: read_header(path, str(checkpoint)) for path in shards}
    changed = [path for path, entries in headers.items() if any(_converted(entry, dtype) for entry in entries)]
    for path in track(shards, f"writing {dtype}"):
        if path in changed:
            _convert(path, headers[path], dtype, out / path.name)
        else:
            shutil.copyfile(path, out / path.name)
    for name in layout.side_files({path.name for path in checkpoint.iterdir()}):
        if name != layout.INDEX or not changed:
            shutil.copyfile(checkpoint / name, out / name)
    if changed and (checkpoint / layout.INDEX).exists():
        _write_index(checkpoint, out)
    _write_config(checkpoint, dtype, out)
    kinds = sorted({NAMES[entry.dtype] for path in changed for entry in headers[path] if _converted(entry, dtype)})
    notes = (f"weights stored as {', '.join(kinds)} were converted",) if changed else ()
    return Built(tools={"torch": version("torch")} if changed else {}, notes=notes)


def _converted(entry: Entry, dtype: str) -> bool:
    return entry.dtype in NAMES and entry.dtype != CODES[dtype]


def _convert(path: Path, entries: Sequence[Entry], dtype: str, target: Path) -> None:
    """Write a file's tensors in their order."""
    with path.open("rb") as source, target.open("wb") as sink:
        metadata = json.loads(source.read(int.from_bytes(source.read(8), "little"))).get("__metadata__")
        sink.write(_header(entries, dtype, metadata))
        for entry in entries:
            for block in _blocks(source, entry):
                sink.write(_cast(block, entry, dtype) if _converted(entry, dtype) else block)


def _header(entries: Sequence[Entry], dtype: str, metadata: Mapping[str, str] | None) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for entry in entries:
        code = CODES[dtype] if _converted(entry, dtype) else entry.dtype
        end = at + entry.parameters * BITS[code] // 8
        header[entry.name] = {"dtype": code, "shape": list(entry.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, so that they can be mapped
    return len(text).to_bytes(8, "little") + text


def _blocks(source: BinaryIO, entry: Entry) -> Iterator[bytes]:
    source.seek(entry.begin)
    left = entry.bytes
    while left:
        block = source.read(min(left, BLOCK_BYTES))
        if not block:
            raise BuildError(f"{source.name} ends {left} bytes before {entry.name} does; get the checkpoint again")
        left -= len(block)
        yield block


def _cast(block: bytes, entry: Entry, dtype: str) -> bytes:
    """Round to nearest, ties to even."""
    values = torch.frombuffer(bytearray(block), dtype=getattr(torch, NAMES[entry.dtype]))
    cast = values.to(getattr(torch, dtype))
    if not bool(torch.isfinite(cast).all()):
        largest = float(values.to(torch.float64).abs().max())
        raise BuildError(f"{entry.name} holds {largest:g}, beyond what {dtype} can hold; set dtype: bfloat16")
    return cast.view(torch.int16).numpy().tobytes()


def _write_index(checkpoint: Path, out: Path) -> None:
    index = layout.read_json(checkpoint / layout.INDEX, str(checkpoint))
    total = sum(entry.bytes for entry in stored.tensors(out))
    index["metadata"] = {**index.get("metadata", {}), "total_size": total}
    (out / layout.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_config(checkpoint: Path, dtype: str, out: Path) -> None:
    """Let config.json name the dtype: loaders compute in what it says."""
    config = layout.read_json(checkpoint / layout.CONFIG, str(checkpoint))
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    if config.get(key) == dtype:
        shutil.copyfile(checkpoint / layout.CONFIG, out / layout.CONFIG)
        return
    config[key] = dtype
    (out / layout.CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
