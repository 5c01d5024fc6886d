"""A checkpoint in about five bits a weight, in files small enough to be brought along a few at a time.

Matrices are stored in GGUF's Q4_1: blocks of 32 numbers, a scale and a minimum in float16, and 4 bits a number. A
checkpoint that came out of such a file comes back with the weights it had, but for bfloat16's last bits. Everything
else is stored as it is. What comes back is one safetensors file in bfloat16.
"""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK, BLOCK_BYTES, SCALE_BYTES = 32, 20, 4
"""Q4_1: numbers of a block, its bytes, and how many of these are the scale and the minimum."""
INDEX, CONFIG = "index.json", "config.json"
SUFFIX = ".npz"

Floats = npt.NDArray[np.float32]


def encode(checkpoint: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files: config and tokenizer, one for each tensor, and at last the index that names them all."""
    import torch
    from safetensors import safe_open

    names = []
    for path in sorted(checkpoint.iterdir()):
        if path.suffix in (".json", ".txt", ".jinja", ".model") and not path.name.endswith(".index.json"):
            names.append(path.name)
            yield path.name, path.read_bytes()
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no dictionary)
                names.append(f"{name}{SUFFIX}")
                yield names[-1], _file(_stored(tensors.get_tensor(name).to(torch.float32).numpy()))
    yield INDEX, json.dumps(names).encode()


def missing(folders: list[Path]) -> list[str]:
    """Name the files that are in none of the folders; the index where that is not there either."""
    index = next((folder / INDEX for folder in folders if (folder / INDEX).exists()), None)
    if index is None:
        return [INDEX]
    return [name for name in json.loads(index.read_text()) if not _places(folders, name)]


def decode(folders: list[Path], out: Path, layers: int | None = None) -> None:
    """Make the checkpoint again of files that lie in several folders; `layers` are all that is kept of it."""
    import torch
    from safetensors.torch import save_file

    index = next(folder / INDEX for folder in folders if (folder / INDEX).exists())
    out.mkdir(parents=True)
    tensors = {}
    for name in json.loads(index.read_text()):
        (place, *_) = _places(folders, name)
        if not name.endswith(SUFFIX):
            shutil.copy(place, out)
            continue
        layer = re.search(r"\.layers\.(\d+)\.", name)
        if layers is not None and layer and int(layer[1]) >= layers:
            continue
        with np.load(place) as stored:
            tensors[name.removesuffix(SUFFIX)] = torch.from_numpy(_floats(stored)).to(torch.bfloat16)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    if layers is not None:
        config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
        text = json.dumps(config | {"num_hidden_layers": layers}, indent=2)
        (out / CONFIG).write_text(text, encoding="utf-8")


def _places(folders: list[Path], name: str) -> list[Path]:
    return [folder / name for folder in folders if (folder / name).exists()]


def _stored(values: Floats) -> dict[str, npt.NDArray[Any]]:
    """Keep scales apart from codes: so they compress, by 6 % of the whole."""
    from gguf import GGMLQuantizationType, quants

    if values.ndim < 2 or values.shape[-1] % BLOCK:
        return {"plain": values}
    rows = quants.quantize(values, GGMLQuantizationType.Q4_1)
    blocks = rows.reshape(-1, BLOCK_BYTES)
    return {"scales": blocks[:, :SCALE_BYTES], "codes": blocks[:, SCALE_BYTES:], "shape": np.array(rows.shape)}


def _floats(stored: Any) -> Floats:
    from gguf import GGMLQuantizationType, quants

    if "plain" in stored:
        plain: Floats = stored["plain"]
        return plain
    rows = np.hstack([stored["scales"], stored["codes"]]).reshape(stored["shape"])
    values: Floats = quants.dequantize(rows, GGMLQuantizationType.Q4_1)
    return values


def _file(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a flag among the arrays
    return stream.getvalue()
