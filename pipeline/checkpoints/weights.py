"""Safetensors as bytes: the header checked against the file, then every byte read once for digest and finiteness.

A file is 8 bytes of header length (little endian), the header (JSON: name -> dtype, shape, data_offsets), and the
tensors' bytes without gaps. Reading it here, rather than through a library that maps it, keeps memory at one block for
any size, needs no torch for bfloat16 and float8, and gives errors that name the file.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import digests
from pipeline.errors import CheckpointError

BLOCK_BYTES = 16 * 2**20
"""Read and looked at in one go; a multiple of every dtype's width."""

LENGTH_BYTES = 8
"""Before the header, for its length."""

LARGEST_HEADER_BYTES = 100_000_000
"""The format's own limit."""

BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8}

NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
NAMES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""As config.json and torch write them."""

EXPONENTS: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
    "F8_E8M0": ("u1", 0xFF),
}
"""Bits that are all set in NaN and Inf only: the exponent in IEEE formats; in e4m3fn and e8m0 the one NaN."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Offset in the file, header included."""
    end: int

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What it takes in the file."""
        return self.end - self.begin


def read_header(path: Path, source: str) -> tuple[Entry, ...]:
    """Return a file's tensors in the order of their bytes; CheckpointError when header and size do not agree.

    `source` names in errors what the file is a part of.
    """
    where = f"{source}: {path.name}"
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = header_bytes(stream.read(LENGTH_BYTES), size, where)
        raw = stream.read(length)
    return entries(raw, size, where)


def header_bytes(first: bytes, size: int, where: str) -> int:
    """Return the length of the header that a file of `size` bytes promises in its first LENGTH_BYTES."""
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if size < LENGTH_BYTES or length > min(size - LENGTH_BYTES, LARGEST_HEADER_BYTES):
        raise CheckpointError(
            f"{where}: its first bytes promise a header of {length} bytes, the file has {size}; it is truncated or "
            "no safetensors file: download it again"
        )
    return length


def entries(raw: bytes, size: int, where: str) -> tuple[Entry, ...]:
    """Return the tensors that a header describes, checked against the size of its file."""
    base = LENGTH_BYTES + len(raw)
    try:
        header = json.loads(raw, object_pairs_hook=_without_duplicates)
        found = [_entry(name, value, base) for name, value in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where}: its header is damaged ({error}); download it again") from error
    found.sort(key=lambda entry: (entry.begin, entry.end))
    expected = base
    for entry in found:
        if entry.begin != expected:
            raise CheckpointError(
                f"{where}: tensor {entry.name} begins at byte {entry.begin}, expected {expected}; the header is "
                "damaged: download it again"
            )
        expected = entry.end
    if expected != size:
        raise CheckpointError(
            f"{where}: has {size} bytes, its header describes {expected}; it is truncated or damaged: download it again"
        )
    return tuple(found)


def _entry(name: str, value: Mapping[str, Any], base: int) -> Entry:
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in BITS:
        raise ValueError(f"tensor {name} has the unknown dtype {dtype!r}")
    if any(not isinstance(extent, int) or extent < 0 for extent in [*shape, begin, end]):
        raise ValueError(f"tensor {name} has shape {shape} at {begin} to {end}")
    if end - begin != math.prod(shape) * BITS[dtype] // 8:
        raise ValueError(f"tensor {name} has {end - begin} bytes, {dtype} {shape} needs another number")
    return Entry(name, dtype, tuple(shape), base + begin, base + end)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = Counter(name for name, _ in pairs)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]} is there twice")
    return dict(pairs)


def check_names(headers: Mapping[str, tuple[Entry, ...]], index: Mapping[str, str] | None, source: str) -> None:
    """Refuse a tensor that two shards hold, that the index does not name, or places in a shard which lacks it."""
    places: dict[str, str] = {}
    for file, entries in headers.items():
        for entry in entries:
            if entry.name in places:
                raise CheckpointError(
                    f"{source}: tensor {entry.name} is in both {places[entry.name]} and {file}; tools differ in which "
                    "one they load: download it again"
                )
            places[entry.name] = file
    if not places:
        raise CheckpointError(f"{source}: its weights hold no tensor; download it again")
    if index is not None and (unnamed := next((name for name in places if name not in index), None)):
        raise CheckpointError(
            f"{source}: tensor {unnamed} is in {places[unnamed]}, and model.safetensors.index.json does not name it; "
            "tools differ in whether they load it: download both again"
        )
    for name, file in (index or {}).items():
        if places.get(name) != file:
            found = f"it is in {places[name]}" if name in places else "no shard has it"
            raise CheckpointError(
                f"{source}: model.safetensors.index.json places tensor {name} in {file}, but {found}; index and shards "
                "are of different versions: download both again"
            )


def common_dtype(entries: Iterable[Entry]) -> str:
    """Return the dtype that most parameters are stored in."""
    counts: Counter[str] = Counter()
    for entry in entries:
        counts[NAMES.get(entry.dtype, entry.dtype.lower())] += entry.parameters
    return min(counts, key=lambda dtype: (-counts[dtype], dtype))


def read_through(
    path: Path, entries: Iterable[Entry], source: str, on_bytes: Callable[[int], object]
) -> tuple[str, Entry | None]:
    """Return the file's sha256, and the first tensor that holds NaN or Inf, in one pass over its bytes.

    The digest is remembered, so that later stages need not read the file again.
    """
    before = path.stat()
    digest = hashlib.sha256()
    buffer = bytearray(BLOCK_BYTES)
    first_bad: Entry | None = None
    with path.open("rb", buffering=0) as stream:
        for entry, length in _stretches(before.st_size, tuple(entries)):
            left = length
            while left:
                block = memoryview(buffer)[: min(left, BLOCK_BYTES)]
                read = _fill(stream.fileno(), block)
                if read < len(block):
                    raise CheckpointError(f"{source}: {path.name} became shorter while it was read; run again")
                digest.update(block)
                if entry is not None and first_bad is None and not _finite(block, entry.dtype):
                    first_bad = entry
                left -= read
                on_bytes(read)
    sha256 = digest.hexdigest()
    digests.remember(path, before, sha256)
    return sha256, first_bad


def _stretches(size: int, entries: tuple[Entry, ...]) -> Iterator[tuple[Entry | None, int]]:
    """Yield (tensor, bytes) over the whole file, the header (None) first."""
    yield None, entries[0].begin if entries else size
    for entry in entries:
        yield entry, entry.bytes


def _fill(descriptor: int, block: memoryview) -> int:
    """Read until the block is full or the file ends."""
    read = 0
    while read < len(block) and (count := os.readv(descriptor, [block[read:]])):
        read += count
    return read


def _finite(block: memoryview, dtype: str) -> bool:
    """Whether no element has all bits of its dtype's NaN and Inf pattern set."""
    if dtype not in EXPONENTS:
        return True
    kind, mask = EXPONENTS[dtype]
    bits: npt.NDArray[Any] = np.frombuffer(block, dtype=kind)
    # A masked value is never above the mask, so the largest one tells: two passes of vector instructions, no branches.
    return bits.size == 0 or int((bits & bits.dtype.type(mask)).max()) != mask
