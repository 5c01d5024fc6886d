"""Runs the tiny model through llama.cpp: a process of its own, for wrong machine code may end it.

    python -m pipeline.toolchains.llama_cpp.trial            names the kernels that this processor can run, best first
    python -m pipeline.toolchains.llama_cpp.trial haswell    tries those, every weight type

The toolchain is the one that ASSAY_LLAMA_CPP names. Each step is printed before it begins, so that the last line says
what a crash was in. Exit code 1, with a line that says what is wrong, when a number is.
"""

import ctypes
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline.toolchains import llama_cpp
from pipeline.toolchains.llama_cpp import tiny_model
from pipeline.toolchains.llama_cpp.tiny_model import TinyModel

ERROR_LEVEL = 4
"""GGML_LOG_LEVEL_ERROR in ggml.h."""
PROMPT_TOKENS, SINGLE_TOKENS = 37, 3
"""No multiple of what kernels take at once."""


def main() -> int:
    """Name the kernels, or try some; return the exit code."""
    folder = llama_cpp.find().bin
    if len(sys.argv) == 1:
        print("\n".join(kernels(folder)))
        return 0
    module = llama_cpp.load(_log, kernels=sys.argv[1])
    for name, kind in tiny_model.KINDS.items():
        _step(f"{name}, quantizing")
        model = tiny_model.make(folder / "libggml-base.so", kind)
        if kind.rounding is not None and not model.rounding <= kind.rounding:
            _step(f"{name}: quantizing changes weights by {model.rounding:.2g}, at most {kind.rounding} expected")
            return 1
        for threads in sorted({1, len(os.sched_getaffinity(0))}):
            found = error(module, name, model, threads)
            if not found <= kind.limit:
                _step(f"{name}, {threads} threads: logits are off by {found:.2g}, at most {kind.limit} expected")
                return 1
    return 0


def kernels(folder: Path) -> list[str]:
    """Name the kernels in a folder that this processor can run, in the order of llama.cpp's own preference."""
    found = {}
    for path in folder.glob("libggml-cpu-*.so"):
        score = int(ctypes.CDLL(str(path)).ggml_backend_score())
        if score > 0:
            found[path.stem.removeprefix("libggml-cpu-")] = score
    return sorted(found, key=lambda name: -found[name])


def error(module: Any, name: str, model: TinyModel, threads: int) -> float:
    """Feed a prompt and single tokens; return how far the logits are from the reference."""
    random = np.random.default_rng(threads)
    ids = random.integers(0, tiny_model.VOCABULARY, PROMPT_TOKENS + SINGLE_TOKENS, dtype=np.int32)
    with TemporaryDirectory(prefix="assay-") as scratch:
        path = Path(scratch) / "model.gguf"
        model.write(path)
        loaded = module.llama_model_load_from_file(str(path).encode(), module.llama_model_default_params())
    if not loaded:
        raise SystemExit("the model cannot be loaded")
    params = module.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = module.LLAMA_FLASH_ATTN_TYPE_ENABLED
    context = module.llama_init_from_model(loaded, params)
    rows = []
    for part in np.split(ids, range(PROMPT_TOKENS, len(ids))):
        _step(f"{name}, {threads} threads, {len(part)} tokens at once")
        rows.append(_decoded(module, context, np.ascontiguousarray(part)))
    module.llama_free(context)
    module.llama_model_free(loaded)
    expected = model.logits(ids)
    return float(np.sqrt(np.mean((np.concatenate(rows) - expected) ** 2) / np.mean(expected**2)))


def _decoded(module: Any, context: Any, ids: Any) -> Any:
    wanted = np.ones(len(ids), np.int8)
    pointers = {
        "token": ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
        "logits": wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
    }
    if (status := module.llama_decode(context, module.llama_batch(n_tokens=len(ids), **pointers))) != 0:
        raise SystemExit(f"llama_decode returned {status}")
    return np.ctypeslib.as_array(module.llama_get_logits(context), (len(ids), tiny_model.VOCABULARY)).copy()


def _step(text: str) -> None:
    print(text, flush=True)


def _log(level: int, text: bytes, user_data: object) -> None:
    """Pass on what llama.cpp calls errors, and nothing else."""
    if level == ERROR_LEVEL:
        sys.stderr.write(text.decode(errors="replace"))


if __name__ == "__main__":
    sys.exit(main())
