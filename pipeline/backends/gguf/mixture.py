"""Which tensor type llama-quantize gives each tensor of a recipe: its rules, as data, from shapes and names alone.

`llama-quantize --dry-run` is the authority (inspect.py asks it of what was built), but it wants a GGUF file, and a plan
is made before there is one. A test holds the two against each other.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from pipeline.backends.gguf.recipe import GgufRecipe
from pipeline.sizing.model import EMBEDDINGS, HEADS, Model, Weight

BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q6_K": (256, 210), "Q5_K": (256, 176),
    "Q5_1": (32, 24), "Q5_0": (32, 22), "Q4_K": (256, 144), "Q4_1": (32, 20), "Q4_0": (32, 18), "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136), "Q3_K": (256, 110), "IQ3_S": (256, 110), "IQ3_XXS": (256, 98), "Q2_K": (256, 84),
    "IQ2_S": (256, 82), "IQ2_XS": (256, 74), "IQ2_XXS": (256, 66), "IQ1_M": (256, 56), "IQ1_S": (256, 50),
}  # fmt: skip
"""Elements of a block, and the bytes that it takes (ggml-common.h)."""

FALLBACK = {
    "Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "Q3_K": "Q4_0", "Q2_K": "Q4_0", "IQ4_XS": "IQ4_NL",
    "IQ3_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL", "IQ2_S": "IQ4_NL", "IQ2_XS": "IQ4_NL", "IQ2_XXS": "IQ4_NL",
    "IQ1_M": "IQ4_NL", "IQ1_S": "IQ4_NL",
}  # fmt: skip
"""What takes the place of a type whose blocks do not fill the rows; F16 where that one's do not either."""

BASE = {"Q2_K_S": "Q2_K", "IQ2_M": "IQ2_S", "IQ2_S": "IQ2_XS", "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S"}
"""The type of most tensors, where a recipe's name without its last letter does not say it."""

TINY = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M")

ROLES = (
    ("qkv", r"qkv_proj|query_key_value|c_attn|Wqkv"),
    ("q", r"\bq_proj|\bwq\b"),
    ("k", r"\bk_proj|\bwk\b"),
    ("v", r"\bv_proj|\bwv\b"),
    ("kv_b", r"kv_b_proj"),
    ("output", r"\bo_proj|\bwo\b|(attn|attention)\.(out_proj|dense|c_proj)"),
    ("router", r"(mlp|block_sparse_moe|feed_forward)\.(gate|router)\b|shared_expert_gate"),
    ("down", r"down_proj|dense_4h_to_h|\bw2\b|mlp\.c_proj|\bfc2|output_linear"),
    ("gate_up", r"gate_up_proj|input_linear"),
    ("gate", r"gate_proj|\bw1\b"),
    ("up", r"up_proj|dense_h_to_4h|\bw3\b|mlp\.c_fc|\bfc1"),
    ("small", r"conv1d|norm|A_log|\.D$|short_?conv|relative|per_layer_model_projection|altup|laurel"),
)
"""What a tensor does, by how families name it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the GGUF file."""

    role: str
    layer: int
    columns: int
    rows: int
    """Rows of all copies; experts of a layer are one tensor."""
    weight: Weight


@dataclass(frozen=True, slots=True)
class Shape:
    """What the rules ask of the model as a whole."""

    layers: int
    attentions: int
    experts: int
    sharing: int
    """Query heads to a key-value head."""
    falcon: bool
    seventy: bool
    """The one size that is an exception."""


def types(recipe: GgufRecipe, model: Model) -> Iterator[tuple[Piece, str]]:
    """Yield each tensor and its type."""
    pieces = [piece for weight in model.weights for piece in _pieces(weight, model)]
    whole = _shape(model, pieces)
    order = sorted({piece.layer for piece in pieces if piece.role in ("v", "qkv", "kv_b")})
    heads = any(piece.role == "head" for piece in pieces)
    for piece in pieces:
        place = order.index(piece.layer) if piece.layer in order else 0
        yield piece, _type(recipe, piece, whole, place, tied=not heads)


def bytes_of(piece: Piece, kind: str) -> int:
    """Return what a tensor takes as such a type."""
    elements, size = BLOCKS[kind]
    return piece.rows * (piece.columns // elements) * size


def _pieces(weight: Weight, model: Model) -> Iterator[Piece]:
    """Yield the tensors that the converter makes of one of the checkpoint's; none of what it leaves out."""
    layer = -1 if weight.layer is None else weight.layer
    if layer >= model.layers > 0:
        return  # a module that predicts further tokens
    role = _role(weight)
    if role == "head" and model.tied:
        return
    columns, rows = (weight.shape[-1], weight.rows) if weight.shape else (1, 1)
    make = partial(Piece, layer=layer, weight=weight)
    if role == "kv_b" and (rank := model.text.get("kv_lora_rank")):
        # Split into the halves for keys and values, the former transposed, so that the compressed form can be kept.
        plain, value = int(model.text["qk_nope_head_dim"]), int(model.text["v_head_dim"])
        heads = rows // (plain + value)
        yield make(role="other", columns=plain, rows=heads * int(rank))
        yield make(role="other", columns=int(rank), rows=heads * value)
    elif role == "gate_up" and weight.expert:
        yield make(role="gate", columns=columns, rows=rows // 2)
        yield make(role="up", columns=columns, rows=rows // 2)
    else:
        yield make(role="up" if role == "gate_up" else role, columns=columns, rows=rows)


def _role(weight: Weight) -> str:
    if weight.name.endswith(HEADS):
        return "head"
    if weight.name.endswith(EMBEDDINGS):
        return "embedding"
    if len(weight.shape) < 2:
        return "small"
    return next((role for role, names in ROLES if re.search(names, weight.name)), "other")


def _shape(model: Model, pieces: Iterable[Piece]) -> Shape:
    heads = model.width("num_attention_heads", "n_head") or 1
    pairs = model.text.get("num_key_value_heads") or model.text.get("num_kv_heads") or heads
    attentions = {piece.layer for piece in pieces if piece.role in ("v", "qkv", "kv_b")}
    family = str(model.text.get("model_type", ""))
    return Shape(
        layers=model.layers,
        attentions=len(attentions),
        experts=model.experts,
        sharing=heads // int(pairs) if isinstance(pairs, int) and pairs else 1,
        falcon=family == "falcon",
        seventy=model.layers == 80 and family in ("llama", "qwen2", "mistral") and pairs != heads,
    )


def _type(recipe: GgufRecipe, piece: Piece, model: Shape, place: int, *, tied: bool) -> str:
    """Name the type of one tensor; `place` counts layers with attention."""
    if piece.role in ("small", "router"):
        return "F32"
    if not recipe.quantized:
        return recipe.quantization
    wanted = _mixture(recipe, piece, model, place, tied=tied)
    if piece.columns % BLOCKS[wanted][0]:
        wanted = FALLBACK.get(wanted, wanted)
    return "F16" if piece.columns % BLOCKS[wanted][0] else wanted


def _mixture(recipe: GgufRecipe, piece: Piece, model: Shape, place: int, *, tied: bool) -> str:
    name = recipe.quantization
    base = BASE.get(name, re.sub(r"_K_[SML]$", "_K", name))
    if piece.role == "head" or (tied and piece.role == "embedding"):
        if model.falcon or base == "Q8_0" or piece.columns % BLOCKS[base][0]:
            return "Q8_0"
        return "Q5_K" if name in (*TINY, "IQ3_XXS") else "Q6_K"
    if piece.role == "embedding":
        if name in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
            return "IQ3_S"
        return "Q2_K" if name in TINY else base
    if name in TINY:
        return _tiny(name, base, piece, model)
    if piece.role in ("v", "qkv"):
        return _values(recipe, base, model, place)
    if piece.role in ("q", "k"):
        if piece.role == "k" and model.experts == 8:
            return "Q8_0"
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(name, base)
    if piece.role == "down":
        return _down(recipe, base, piece.layer, model)
    if piece.role == "output":
        return _output(name, base, model)
    if name == "IQ3_XS" and piece.role in ("gate", "up") and model.layers // 8 <= piece.layer < 7 * model.layers // 8:
        return "IQ3_XXS"
    return base


def _tiny(name: str, base: str, piece: Piece, model: Shape) -> str:
    """Types of about two bits keep what matters most in more."""
    better = "IQ3_S" if name in ("IQ2_S", "IQ2_M") else "Q2_K"
    if piece.role in ("v", "qkv", "kv_b"):
        return "Q4_K" if model.sharing >= 4 or model.experts >= 4 else better
    if piece.role == "k" and model.experts == 8:
        return "Q4_K"
    if piece.role == "down" and piece.layer < model.layers // 8:
        return better
    if piece.role == "output":
        if model.experts == 8:
            return "Q5_K"
        return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(name, base)
    return base


def _more(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third one between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _values(recipe: GgufRecipe, base: str, model: Shape, place: int) -> str:
    name, shared = recipe.quantization, model.sharing >= 4
    if model.experts == 8:
        return "Q8_0"
    found = base
    if name in ("Q2_K", "Q2_K_S"):
        found = "Q4_K" if shared else "Q3_K" if name == "Q2_K" else base
    elif name == "IQ3_XXS":
        found = "Q4_K" if shared else "IQ3_XXS" if recipe.weighted else "IQ3_S"
    elif (name in ("IQ3_XS", "IQ3_S") and shared) or name == "IQ3_M":
        found = "Q4_K"
    elif name == "Q3_K_M":
        found = "Q5_K" if place < 2 else "Q4_K"
    elif name == "Q3_K_L" or (name in ("IQ4_NL", "IQ4_XS") and shared) or (name == "Q4_K_S" and place < 4):
        found = "Q5_K"
    elif name in ("Q4_K_M", "Q5_K_M") and _more(place, model.attentions):
        found = "Q6_K"
    return "Q5_K" if model.seventy and found in ("Q3_K", "Q4_K") else found


def _down(recipe: GgufRecipe, base: str, layer: int, model: Shape) -> str:
    name, layers, falcon = recipe.quantization, model.layers, model.falcon
    first, more = layer < layers // 8, _more(layer, layers)
    found = base
    if name == "Q2_K":
        found = "Q3_K"
    elif name == "Q2_K_S":
        found = "Q4_K" if first else base
    elif name == "IQ3_XXS" and not recipe.weighted:
        found = "Q4_K" if first else "Q3_K"
    elif name == "Q3_K_M":
        found = "Q5_K" if layer < layers // 16 else "Q4_K" if not falcon or more else "Q3_K"
    elif name == "IQ3_M":
        found = "Q4_K" if first or (model.experts == 8 and more) else base
    elif name == "Q3_K_L":
        found = "Q4_K" if falcon else "Q5_K"
    elif name == "Q4_K_M" and falcon:
        found = "Q6_K" if layer < layers // 16 else "Q5_K" if more else "Q4_K"
    elif name in ("Q4_K_M", "Q5_K_M"):
        found = "Q6_K" if more else base
    elif (name in ("IQ4_NL", "IQ4_XS") and not recipe.weighted) or (name == "Q4_K_S" and not falcon):
        found = "Q5_K" if first else base
    elif name in ("Q4_0", "Q5_0") and recipe.weighted:
        found = {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[name] if first else base
    return found


def _output(name: str, base: str, model: Shape) -> str:
    if model.falcon:
        return "Q4_K" if name == "Q3_K_L" else base
    if model.experts == 8:
        kept = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "Q2_K_S", "Q3_K_L")
        return base if name in kept else "Q5_K"
    return {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}.get(name, base)
