"""What an ONNX artifact takes, from shapes alone: as inspected after a build, and as planned before one."""

import math

from pipeline.backends.onnx.recipe import OnnxRecipe
from pipeline.sizing.cache import Use
from pipeline.sizing.estimate import Estimate, Load, Making, Runtime, assemble
from pipeline.sizing.model import EMBEDDINGS, HEADS, Model, Weight

INPUTS = (*EMBEDDINGS, "embed_in.weight")
LOOKED_UP = (*INPUTS, "wpe.weight", "embed_positions.weight")
"""How the names of matrices end that are read by rows, which Optimum's quantizer leaves alone."""

GROUPS = (128, 64, 32)
"""Weights that share a scale in the GPTQ and AWQ artifacts that can be taken."""

PROCESS_BYTES = 312_000_000
"""A worker with onnxruntime, onnx and the tokenizers library before weights (onnxruntime 1.31)."""

FEED_TOKENS = 256
"""Tokens of a prompt in one pass (containers.engines.slots), whose logits all come back."""

BUILDER_BYTES = 470_000_000
"""The model builder's interpreter with torch and transformers."""

COPIES = {"fp32": 1.1, "int8": 2.0, "int4": 2.4}
"""Copies of all weights in float32 that the builder has in memory at its peak; k_quant's search takes more than
rounding."""


def bits(recipe: OnnxRecipe, weight: Weight, *, tied: bool) -> tuple[float, float]:
    """Return the least and the most bits that this recipe can store one of the checkpoint's tensors in."""
    return _optimum(recipe, weight, tied=tied) if recipe.exporter == "optimum" else _genai(recipe, weight, tied=tied)


def _optimum(recipe: OnnxRecipe, weight: Weight, *, tied: bool) -> tuple[float, float]:
    """Matrices are float32, or int8 with a float32 scale and a zero point for each column, whichever axis those lie on.

    Those read by rows stay floats. A head tied to the embedding, which a checkpoint may hold all the same, is stored
    once as floats; as integers it stands beside the embedding.
    """
    floats = 32.0 * weight.parameters
    if tied and weight.name.endswith(HEADS):
        return 0.0, 0.0
    if recipe.precision == "fp32" or len(weight.shape) < 2:
        return floats, floats
    integers = 8.0 * weight.parameters
    least, most = (integers + 40 * weight.copies * side(weight.shape) for side in (min, max))
    if not weight.name.endswith(LOOKED_UP):
        return least, most
    return (floats + least, floats + most) if tied and weight.name.endswith(INPUTS) else (floats, floats)


def _genai(recipe: OnnxRecipe, weight: Weight, *, tied: bool) -> tuple[float, float]:
    """Add up what the model builder makes of it.

    Vectors and the input embedding are float32. A head tied to the embedding is stored once when both have one format:
    float32, or 4 bits; else the head is stored as well.
    """
    floats = 32.0 * weight.parameters
    if recipe.precision == "fp32" or len(weight.shape) < 2:
        return floats, floats
    if recipe.source != "checkpoint":
        return _taken(recipe, weight, tied=tied)
    least, most = _quantized(recipe, weight)
    if weight.name.endswith(EMBEDDINGS):
        shared = recipe.precision == "int4"
        if tied and not shared:
            return least + floats, most + floats
        if not tied:
            kept = least if recipe.quantize_embeddings else floats
            return kept, kept
    elif tied and weight.name.endswith(HEADS):
        return 0.0, 0.0
    return least, most


def _taken(recipe: OnnxRecipe, weight: Weight, *, tied: bool) -> tuple[float, float]:
    """Bits of what a GPTQ or AWQ artifact gives: groups of some size that divides its rows, embedding and head floats.

    A tied head is stored once.
    """
    floats = 32.0 * weight.parameters
    if tied and weight.name.endswith(HEADS):
        return 0.0, 0.0
    if weight.name.endswith((*EMBEDDINGS, *HEADS)):
        return floats, floats
    fitting = [group for group in GROUPS if weight.shape[-1] % group == 0] or GROUPS
    found = [_packed(recipe, weight, group, zero_points=True) for group in fitting]
    return min(found), max(found)


def _packed(
    recipe: OnnxRecipe, weight: Weight, block_size: int, *, zero_points: bool, width: int | None = None
) -> float:
    """Bits of a MatMulNBits matrix: integers of whole blocks, a float32 scale a block, each row's zero points."""
    width = width or (8 if recipe.precision == "int8" else 4)
    blocks = math.ceil(weight.shape[-1] / block_size)
    return weight.rows * (
        blocks * (block_size * width + 32) + (8 * math.ceil(blocks * width / 8) if zero_points else 0)
    )


def _quantized(recipe: OnnxRecipe, weight: Weight) -> tuple[float, float]:
    """Return the bits of a matrix that the builder rounds: k_quant has zero points, and some of its matrices 8 bits."""
    asymmetric = recipe.effective_algorithm == "k_quant"
    least = _packed(recipe, weight, recipe.block_size, zero_points=asymmetric)
    if recipe.int8_parts == "none":
        return least, least
    return least, _packed(recipe, weight, recipe.block_size, zero_points=asymmetric, width=8)


def estimate(recipe: OnnxRecipe, model: Model, load: Load) -> Estimate:
    """See Backend.estimate.

    The engine's cache is float32, knows no windows, and is there as a whole; no GPU is used.
    """

    def of(weight: Weight) -> float:
        least, most = bits(recipe, weight, tied=model.tied)
        if recipe.int8_parts == "none":
            return least
        if recipe.int8_parts == "head":
            return most if weight.name.endswith(HEADS) or (model.tied and weight.name.endswith(EMBEDDINGS)) else least
        # The head, and of attention inputs and down projections those of about half the layers.
        return most if weight.name.endswith(HEADS) else least + (most - least) / 4

    return assemble(
        model,
        load,
        bits=of,
        # The graph: about 6 KB a layer, 9 KB with quantized matrices, beside rotary tables of float32.
        other_bytes=model.companion_bytes + 9_000 * model.layers + _rotary_bytes(model),
        runtime=Runtime(
            use=Use(bits=32, windows=False, latent=False, whole=True),
            takes_gpus=False,
            process_bytes=PROCESS_BYTES,
            work_bytes=4 * min(FEED_TOKENS, load.filled_tokens) * (model.vocabulary_size + 4 * model.inner),
        ),
        making=Making(
            anonymous_bytes=round(BUILDER_BYTES + COPIES[recipe.precision] * 4 * model.parameters), disk_bytes=0
        ),
    )


def _rotary_bytes(model: Model) -> int:
    """Cosines and sines by position, half a head wide each."""
    heads = model.width("num_attention_heads", "n_head") or 1
    head = model.width("head_dim") or model.hidden // heads
    return 4 * head * (model.context_tokens or 0)
