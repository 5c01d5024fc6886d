"""llama.cpp in this process: loaded once, quiet, and able to say why a file did not load."""

import ctypes
import functools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from evals.runner import Ids
from pipeline.errors import MeasurementError
from pipeline.toolchains import llama_cpp

ERROR_LEVEL = 4
"""GGML_LOG_LEVEL_ERROR in the toolchain's ggml.h; the bindings' own table of levels is out of date."""

_errors: deque[str] = deque(maxlen=20)


@functools.cache
def library() -> Any:
    """Import the bindings; from then on the library's log keeps error lines for `errors` and prints nothing."""
    return llama_cpp.load(_log)


def _log(level: int, text: bytes, user_data: object) -> None:
    if level == ERROR_LEVEL:
        _errors.append(text.decode(errors="replace"))


def errors() -> str:
    """Return the error lines since the last call, joined, and forget them."""
    lines = "; ".join(line.strip() for line in _errors if line.strip())
    _errors.clear()
    return lines or "llama.cpp gave no reason"


@contextmanager
def model(path: Path, *, vocabulary_only: bool = False, on_gpu: bool = False) -> Iterator[Any]:
    """Load a GGUF file, memory-mapped, and free it afterwards. Raises MeasurementError with llama.cpp's own reason.

    On a CPU weights of some types are copied into an interleaved layout that it multiplies faster, as the server does.
    On GPUs it is all layers, spread over them where there are several.
    """
    llama = library()
    params = llama.llama_model_default_params()
    params.n_gpu_layers = -1 if on_gpu else 0
    params.load_mode = llama.LLAMA_LOAD_MODE_MMAP
    params.vocab_only = vocabulary_only
    _errors.clear()
    if not path.is_file():
        raise MeasurementError(f"{path}: no such file; rebuild the artifact with `dvc repro`")
    loaded = llama.llama_model_load_from_file(str(path).encode(), params)
    if not loaded:
        raise MeasurementError(f"{path}: llama.cpp cannot load it: {errors()}")
    try:
        yield loaded
    finally:
        llama.llama_model_free(loaded)


def tokenize(loaded: Any, text: str) -> Ids:
    """Return a loaded model's own ids for a text, with no BOS or EOS added; special tokens in it are recognised."""
    llama = library()
    vocabulary = llama.llama_model_get_vocab(loaded)
    data = text.encode()
    ids = np.empty(len(data) + 2, np.int32)  # no token is shorter than a byte; SentencePiece may prefix a space
    pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
    count = llama.llama_tokenize(vocabulary, data, len(data), pointer, len(ids), False, True)
    if count < 0:
        raise MeasurementError(f"llama.cpp cannot tokenize a text of {len(data)} bytes: it asks for {-count} tokens")
    return ids[:count]


def piece(loaded: Any, token: int) -> str:
    """Return the text of one token; bytes that are no whole character become U+FFFD."""
    llama = library()
    buffer = ctypes.create_string_buffer(256)
    length = llama.llama_token_to_piece(llama.llama_model_get_vocab(loaded), token, buffer, len(buffer), 0, True)
    if length < 0:  # it needs as much room
        buffer = ctypes.create_string_buffer(-length)
        length = llama.llama_token_to_piece(llama.llama_model_get_vocab(loaded), token, buffer, -length, 0, True)
    return buffer.raw[:length].decode(errors="replace")
