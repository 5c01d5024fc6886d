"""Small checkpoints written byte by byte, so that tests can damage exactly what they mean to damage."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 32

Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]


def safetensors(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    """Return a file of the given (dtype, shape, bytes)."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(raw for _, _, raw in tensors.values())


def numbers(dtype: str, *shape: int, seed: int = 0) -> tuple[str, tuple[int, ...], bytes]:
    """Return small normal numbers in F32, F16 or BF16."""
    values = np.random.default_rng(seed).normal(size=math.prod(shape)).astype("<f4")
    if dtype == "BF16":
        return dtype, shape, (values.view("<u4") >> 16).astype("<u2").tobytes()
    return dtype, shape, values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def shards() -> dict[str, bytes]:
    """Two shards and their index."""
    first = {"model.embed_tokens.weight": numbers("BF16", VOCABULARY, 256)}
    second = {"model.norm.weight": numbers("F32", 256, seed=1), "lm_head.weight": numbers("BF16", VOCABULARY, 256)}
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = {name: file for file, part in zip(names, (first, second), strict=True) for name in part}
    return {
        names[0]: safetensors(first),
        names[1]: safetensors(second),
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": index}).encode(),
    }


def config(**changes: Any) -> bytes:
    """A Llama's config.json; a change to None removes the key."""
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "num_hidden_layers": 0,
        "max_position_embeddings": 512,
        **changes,
    }
    return json.dumps({key: value for key, value in values.items() if value is not None}).encode()


def tokenizer(size: int = VOCABULARY) -> dict[str, bytes]:
    """A tokenizer of `size` whole words."""
    vocabulary = {f"w{index}": index for index in range(size)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    whole: dict[str, Any] = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    whole |= {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    return {
        "tokenizer.json": json.dumps(whole).encode(),
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}',
    }


def tree(**changes: bytes) -> dict[str, bytes]:
    """All files of a sound checkpoint, and some that must not be taken."""
    return {
        "config.json": config(),
        **tokenizer(),
        **shards(),
        "README.md": b"# a card",
        "pytorch_model.bin": b"\x80\x04" * 4096,
        "modeling_own.py": b"raise SystemExit",
        **changes,
    }


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
