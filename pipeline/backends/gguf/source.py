"""What all GGUF recipes of one checkpoint start from: its weights as GGUF, unquantized, and the importance matrix.

Both are made once and kept under CACHE for the sibling recipes, as a person at the command line would do; converting
again for each recipe would cost most of the build. The cache holds one checkpoint at a time and can be deleted at any
moment between builds. Builds take turns at it: a second one waits for the lock.

The conversion writes two shards: the first holds the metadata and no tensor, the second every tensor. llama-quantize
reads both and writes one file; llama-imatrix reads the second under another first (ids.py).
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from gguf import GGUFReader

from evals.runner import Ids
from evals.windows import Windows
from pipeline import digests, processes
from pipeline.backends.gguf import ids, library
from pipeline.checkpoints.weights import read_header
from pipeline.compute import Compute
from pipeline.errors import BuildError, MeasurementError
from pipeline.records import FILE, Checkpoint
from pipeline.toolchains.llama_cpp import LlamaCpp

CACHE = Path(".assay/cache/gguf")
HEADER, TENSORS = "model-00001-of-00002.gguf", "model-00002-of-00002.gguf"
LAYOUT = 1
"""Raise when the same inputs are converted in another way."""


@contextmanager
def converted(toolchain: LlamaCpp, checkpoint: Path) -> Iterator[Path]:
    """Give the folder with HEADER and TENSORS, converting now if no sibling has; others wait until the block ends."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        name, digest = _identity(checkpoint)
        folder = CACHE.resolve() / digests.of_value([LAYOUT, toolchain.root.name, name, digest])[:16]
        for other in folder.parent.iterdir():
            if other.is_dir() and other != folder:
                shutil.rmtree(other)
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            try:
                _convert(toolchain, checkpoint, name, partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        yield folder


def importance(toolchain: LlamaCpp, folder: Path, corpus: Path, compute: Compute) -> Path:
    """Return the importance matrix of the calibration windows, computing it if no sibling has.

    It holds, for each weight matrix and each of its input columns, the sum of squared activations over all tokens of
    all windows. Each window runs from an empty cache with exactly the corpus's ids, prefix token included. Flash
    attention is off: its result depends on the number of threads.
    """
    calibration = corpus / "calibration.npz"
    layers = toolchain.gpu_layers(compute)
    name = digests.of_file(calibration)[:16] + ("" if layers == "0" else "-gpu")  # whose sums differ in the last bits
    target = folder / name / "imatrix.gguf"
    if target.exists():
        return target
    windows = Windows.load(calibration).ids
    if len(windows) == 1:
        windows = np.repeat(windows, 2, axis=0)  # llama-imatrix wants two; the mean of two equal windows is the same
    tokens = windows.shape[1]
    with TemporaryDirectory(dir=folder, prefix="imatrix-") as scratch:
        work = Path(scratch)
        ids.write_header(folder / HEADER, work / HEADER)
        (work / TENSORS).symlink_to(folder / TENSORS)
        text = ids.as_text(windows)
        (work / "calibration.txt").write_text(text, encoding="utf-8")
        _check_reading(work / HEADER, text, windows)
        batch = tokens * (512 // tokens) if tokens <= 512 else 512
        options = {
            "-m": HEADER,
            "-f": "calibration.txt",
            "-o": "imatrix.gguf",
            "-c": tokens,
            "-b": batch,
            "-ub": 512,
            "-t": compute.threads,
            "-ngl": layers,
            "-fa": "off",
        }
        words = [str(word) for option in options.items() for word in option]
        done = processes.count(r".*stored collected data after (\d+) chunks", total=len(windows))
        processes.run(
            [toolchain.tool("llama-imatrix"), *words, "--no-ppl"], what="llama-imatrix", cwd=work, progress=done
        )
        _check_chunks(work / "imatrix.gguf", len(windows))
        target.parent.mkdir(exist_ok=True)
        (work / "imatrix.gguf").rename(target)
    return target


def _check_reading(header: Path, text: str, windows: Ids) -> None:
    try:
        with library.model(header, vocabulary_only=True) as model:
            read = library.tokenize(model, text)
    except MeasurementError as error:
        raise BuildError(f"llama-imatrix would not read the calibration windows: {error}") from error
    if not np.array_equal(read, windows.ravel()):
        raise BuildError("llama.cpp does not read the calibration windows as the ids they are")


def _check_chunks(matrix: Path, windows: int) -> None:
    if not matrix.exists():
        raise BuildError("llama-imatrix ended well but wrote no matrix")
    chunks = GGUFReader(matrix).fields["imatrix.chunk_count"].contents()
    if chunks != windows:
        raise BuildError(f"llama-imatrix saw {chunks} of {windows} calibration windows")


def _identity(checkpoint: Path) -> tuple[str, str]:
    """Return the name that goes into the file, and the checkpoint's digest.

    The converter would take the name from the folder, which differs from machine to machine. A Hub repository's name
    is kept; a folder's is replaced by the model type. A name in the model card wins over both.
    """
    if (checkpoint / FILE).exists():
        record = Checkpoint.load(checkpoint / FILE)
        if record.source.startswith("hf://"):
            return record.source.rstrip("/").rpartition("/")[2], record.digest
        digest = record.digest
    else:
        digest = digests.of_files(digests.list_files(checkpoint))
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return str(config.get("model_type", "model")), digest


def _convert(toolchain: LlamaCpp, checkpoint: Path, name: str, into: Path) -> None:
    named = into / "input" / name
    named.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.name != FILE:
            (named / path.name).symlink_to(path.resolve())
    _correct_config(named / "config.json")
    command: list[str | Path] = [sys.executable, toolchain.converter, named, "--outfile", into / "model.gguf"]
    command += ["--outtype", _outtype(checkpoint), "--split-max-size", "1000000G", "--no-tensor-first-split"]
    percent = processes.count(r"Writing: +(\d+)%", total=100)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    processes.run(command, what="convert_hf_to_gguf.py", env=environment, progress=percent)
    shutil.rmtree(into / "input")
    for file in (HEADER, TENSORS):
        if not (into / file).exists():
            raise BuildError(f"convert_hf_to_gguf.py ended well but did not write {file}")


def _correct_config(link: Path) -> None:
    """Replace a link to config.json by a corrected copy where the converter would misread it.

    Falcon 7B shares one key-value head whatever `num_kv_heads` says, and transformers fills that key with the number of
    attention heads when it is absent; the converter takes it at its word and then finds too few weights.
    """
    config = json.loads(link.read_text(encoding="utf-8"))
    one_head = config.get("multi_query", True) and not config.get("new_decoder_architecture", False)
    if config.get("model_type") == "falcon" and one_head:
        link.unlink()
        link.write_text(json.dumps({**config, "num_kv_heads": 1}), encoding="utf-8")


def _outtype(checkpoint: Path) -> str:
    """Name the narrowest type that holds every weight matrix exactly.

    bfloat16 and float16 do not hold each other (8 exponent bits against 5, 7 fraction bits against 10), so a mixture
    goes to float32. For types that the converter itself unpacks, such as float8, the choice is its own.
    """
    entries = (entry for file in sorted(checkpoint.glob("*.safetensors")) for entry in read_header(file, file.name))
    dtypes = {entry.dtype for entry in entries if len(entry.shape) > 1}
    if len(dtypes) == 1:
        return {"BF16": "bf16", "F16": "f16", "F32": "f32"}.get(dtypes.pop(), "auto")
    return "f32" if dtypes <= {"BF16", "F16", "F32"} else "auto"
