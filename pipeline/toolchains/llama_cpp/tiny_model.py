"""A tiny model whose logits NumPy can work out from its weights: what llama.cpp's kernels are held against.

It is of the Llama kind with two experts, both of which every token goes through, so that plain and routed matrix
products are met and rounding cannot change the route. All matrices are drawn from one pool of random rows: quantizing
the pool, by llama.cpp's own portable code, gives the weights of every matrix, and turning it back into floats those of
the reference. What is left between the two is how kernels round what they multiply the weights with.
"""

import ctypes
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A weight type."""

    number: int
    """In ggml.h."""
    rounding: float | None
    """What quantizing the pool may change: relative error, root mean square, a tenth more than it does. None where the
    rows are drawn as they are stored: tables that these types are quantized with take 2 to 14 s to make."""
    limit: float
    """Of the logits' relative error, root mean square: twice what kernels' rounding of activations makes it. Most types
    share a scale among 256 of these, or among 32."""


def _kind(number: int, rounding: float | None, block: int = 256) -> Kind:
    return Kind(number=number, rounding=rounding, limit=0.08 if block == 256 else 0.04)


KINDS = {
    "F32": _kind(0, 0.0, 1), "F16": _kind(1, 0.0003, 1), "BF16": _kind(30, 0.002, 1), "Q8_0": _kind(8, 0.006, 32),
    "Q6_K": _kind(14, 0.019), "Q5_K": _kind(13, 0.039), "Q5_1": _kind(7, 0.037, 32), "Q5_0": _kind(6, 0.045, 32),
    "Q4_K": _kind(12, 0.078), "Q4_1": _kind(3, 0.077, 32), "Q4_0": _kind(2, 0.09, 32), "IQ4_NL": _kind(20, 0.083, 32),
    "IQ4_XS": _kind(23, 0.083), "Q3_K": _kind(11, 0.16), "IQ3_S": _kind(21, 0.15), "IQ3_XXS": _kind(18, 0.2),
    "Q2_K": _kind(10, 0.3), "IQ2_S": _kind(22, None), "IQ2_XS": _kind(17, None), "IQ2_XXS": _kind(16, None),
    "IQ1_M": _kind(29, None), "IQ1_S": _kind(19, None),
}  # fmt: skip
"""Every type that a recipe's tensors can have."""

WIDTH, HEADS, KEY_HEADS, EXPERTS, VOCABULARY = 512, 8, 2, 2, 512
"""Rows are two of the largest blocks long."""
HEAD = WIDTH // HEADS
EPSILON, ROPE_BASE = 1e-5, 10_000.0
SEED = 1

MATRICES = {
    "token_embd": VOCABULARY, "output": VOCABULARY, "blk.0.attn_q": WIDTH, "blk.0.attn_k": KEY_HEADS * HEAD,
    "blk.0.attn_v": KEY_HEADS * HEAD, "blk.0.attn_output": WIDTH, "blk.0.ffn_gate_exps": EXPERTS * WIDTH,
    "blk.0.ffn_up_exps": EXPERTS * WIDTH, "blk.0.ffn_down_exps": EXPERTS * WIDTH,
}  # fmt: skip
"""Rows of each matrix; all have WIDTH columns."""
VECTORS = {"output_norm": 1, "blk.0.attn_norm": 1, "blk.0.ffn_norm": 1, "blk.0.ffn_gate_inp": EXPERTS}
"""What stays in float32 whatever the type is: rows of WIDTH."""

METADATA: Mapping[str, int | float | str] = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "no_vocab",
    "llama.vocab_size": VOCABULARY,
    "llama.context_length": 256,
    "llama.block_count": 1,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": WIDTH,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KEY_HEADS,
    "llama.attention.layer_norm_rms_epsilon": EPSILON,
    "llama.rope.dimension_count": HEAD,
    "llama.rope.freq_base": ROPE_BASE,
    "llama.expert_count": EXPERTS,
    "llama.expert_used_count": EXPERTS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """The model in one weight type."""

    kind: Kind
    stored: Mapping[str, Bytes]
    """Rows of each tensor as they lie in a file."""
    weights: Mapping[str, Floats]
    """What these rows stand for."""
    rounding: float
    """See Kind.rounding; 0 where rows are drawn."""

    def write(self, path: Path) -> None:
        """Write the GGUF file."""
        infos, offset = [], 0
        for name, rows in self.stored.items():
            number = (self.kind if name in MATRICES else KINDS["F32"]).number
            experts = EXPERTS if name.endswith("_exps") else 1
            sizes = (WIDTH, len(rows) // experts, *([experts] if experts > 1 else []))
            sizes = sizes[: 1 if name.endswith("_norm") else 3]
            placed = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, number, offset)
            infos.append(_string(f"{name}.weight") + placed)
            offset += rows.size + -rows.size % 32
        head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(METADATA))
        head += b"".join(_string(key) + _value(value) for key, value in METADATA.items()) + b"".join(infos)
        with path.open("wb") as file:
            file.write(head + bytes(-len(head) % 32))
            for rows in self.stored.values():
                file.write(rows.tobytes() + bytes(-rows.size % 32))

    def logits(self, ids: npt.NDArray[np.int32]) -> Floats:
        """Work out the logits after each token."""
        weights = self.weights
        x = weights["token_embd"][ids]
        y = _normed(x, weights["blk.0.attn_norm"])
        queries = _rotated(_heads(y @ weights["blk.0.attn_q"].T))
        keys, values = _rotated(_heads(y @ weights["blk.0.attn_k"].T)), _heads(y @ weights["blk.0.attn_v"].T)
        keys, values = (np.repeat(each, HEADS // KEY_HEADS, axis=0) for each in (keys, values))
        scores = queries @ keys.transpose(0, 2, 1) / np.sqrt(HEAD)
        scores[:, ~np.tri(len(ids), dtype=bool)] = -np.inf
        mixed = (_softmax(scores) @ values).transpose(1, 0, 2).reshape(len(ids), WIDTH)
        x = x + mixed @ weights["blk.0.attn_output"].T
        y = _normed(x, weights["blk.0.ffn_norm"])
        shares = _softmax(y @ weights["blk.0.ffn_gate_inp"].T)
        for expert in range(EXPERTS):
            own = slice(expert * WIDTH, (expert + 1) * WIDTH)
            gate, up, down = (weights[f"blk.0.ffn_{name}_exps"][own] for name in ("gate", "up", "down"))
            gated = y @ gate.T
            x = x + shares[:, expert, None] * ((gated / (1 + np.exp(-gated)) * (y @ up.T)) @ down.T)
        logits: Floats = _normed(x, weights["output_norm"]) @ weights["output"].T
        return logits


def make(library: Path, kind: Kind) -> TinyModel:
    """Make the model in one type, with the ggml-base library at `library`."""
    random = np.random.default_rng(SEED)
    pool = (random.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)
    ggml = _Ggml(library, kind)
    rows = ggml.drawn(random) if kind.rounding is None else ggml.quantized(pool)
    floats = ggml.floats(rows)
    stored: dict[str, Bytes] = {}
    weights: dict[str, Floats] = {}
    for name, count in MATRICES.items():
        chosen = random.integers(0, len(pool), count)
        stored[name], weights[name] = rows[chosen], floats[chosen].astype(np.float64)
    for name, count in VECTORS.items():
        vector = (random.standard_normal((count, WIDTH)) / 4 + name.endswith("_norm")).astype(np.float32)
        stored[name], weights[name] = vector.view(np.uint8), vector.astype(np.float64)
    rounding = 0.0 if kind.rounding is None else float(np.sqrt(np.mean((floats - pool) ** 2) / np.mean(pool**2)))
    return TinyModel(kind=kind, stored=stored, weights=weights, rounding=rounding)


class _Traits(ctypes.Structure):
    """ggml_type_traits of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


class _Ggml:
    """One type's functions in ggml-base."""

    def __init__(self, library: Path, kind: Kind) -> None:
        self._kind = kind
        ggml = ctypes.CDLL(str(library))
        ggml.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
        self._traits = ggml.ggml_get_type_traits(kind.number).contents
        self._quantize = ggml.ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        self._quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
        self._row_bytes = WIDTH // self._traits.blck_size * self._traits.type_size

    def quantized(self, pool: npt.NDArray[np.float32]) -> Bytes:
        """Quantize rows, every column of equal importance."""
        rows, equal = np.empty((len(pool), self._row_bytes), np.uint8), np.ones(WIDTH, np.float32)
        pointers = (pool.ctypes.data, rows.ctypes.data)
        written = self._quantize(self._kind.number, *pointers, 0, len(pool), WIDTH, equal.ctypes.data)
        assert written == rows.size, (written, rows.size)
        return rows

    def drawn(self, random: np.random.Generator) -> Bytes:
        """Draw blocks of any bits, but for their scale, which makes the numbers as large as the pool's."""
        size = self._traits.type_size
        blocks = np.frombuffer(random.bytes(WIDTH * self._row_bytes), np.uint8).reshape(-1, size).copy()
        self._scale(blocks, 1.0)
        self._scale(blocks, 1 / np.sqrt(WIDTH) / float(self.floats(blocks).std()))
        return blocks.reshape(WIDTH, self._row_bytes)

    def _scale(self, blocks: Bytes, scale: float) -> None:
        """Write the float16 scale of every block: its first two bytes, or four bits in each of IQ1_M's last pairs."""
        bits = int(np.float16(scale).view(np.uint16))
        if self._kind is not KINDS["IQ1_M"]:
            blocks[:, 0], blocks[:, 1] = bits & 0xFF, bits >> 8
            return
        for place in range(4):
            high = blocks[:, 2 * place - 7]
            high[...] = high & 0x0F | (bits >> 4 * place & 0xF) << 4

    def floats(self, rows: Bytes) -> npt.NDArray[np.float32]:
        """Return the numbers that rows stand for."""
        if not self._traits.to_float:  # float32 has none
            return rows.view(np.float32)
        count = rows.size // self._traits.type_size * self._traits.blck_size
        floats: npt.NDArray[np.float32] = np.empty((count // WIDTH, WIDTH), np.float32)
        self._traits.to_float(rows.ctypes.data, floats.ctypes.data, count)
        return floats


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _value(value: int | float | str) -> bytes:
    """Write a metadata value behind its type's number in gguf.h: 4 is uint32, 6 float32, 8 a string."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    return struct.pack("<II", 4, value) if isinstance(value, int) else struct.pack("<If", 6, value)


def _normed(x: Floats, weight: Floats) -> Floats:
    normed: Floats = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + EPSILON) * weight
    return normed


def _heads(x: Floats) -> Floats:
    return x.reshape(len(x), -1, HEAD).transpose(1, 0, 2)


def _rotated(x: Floats) -> Floats:
    """Turn pairs of neighbouring columns by their position, as llama.cpp stores Llama's heads."""
    angles = np.arange(x.shape[1])[:, None] * ROPE_BASE ** (-np.arange(0, HEAD, 2) / HEAD)
    turned = np.empty_like(x)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
    turned[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
    return turned


def _softmax(x: Floats) -> Floats:
    grown = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: Floats = grown / grown.sum(axis=-1, keepdims=True)
    return shares
