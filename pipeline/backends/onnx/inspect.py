"""Reading an onnxruntime-genai folder back for the structural checks."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from pipeline.backends.contract import Contents, Tensor, Tokenizer
from pipeline.backends.onnx import build, genai, graph
from pipeline.errors import MeasurementError
from pipeline.records import Message

if TYPE_CHECKING:
    from pipeline.backends.onnx.recipe import Onnx

EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")

TOLERANCE = 0.02
"""Of the expected bits per weight: fused and rescaled norms, routers that stay in float32."""

Shapes = Mapping[str, tuple[int, ...]]


@contextmanager
def contents(recipe: "Onnx", artifact: Path, checkpoint: Path) -> Iterator[Contents]:
    """Open the artifact in its own runtime, so that a graph which does not load is found here, and read its tensors."""
    model = genai.model(artifact, threads=1)
    shapes = _shapes(checkpoint)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    stored = list(graph.weights(artifact))
    config = json.loads((checkpoint / "config.json").read_bytes())
    low, high = _expected_bits(recipe, shapes, config)
    yield Contents(
        tensors=_tensors(stored),
        bits_per_weight=8 * sum(one.bytes for one in stored) / parameters,
        expected_bits_per_weight=(low / parameters * (1 - TOLERANCE), high / parameters * (1 + TOLERANCE)),
        tokenizer=_tokenizer(model, artifact),
    )


def _tensors(stored: Iterable[graph.Stored]) -> Iterator[Tensor]:
    """Read one tensor after the other; zero points are left out, which may rightly be the same everywhere."""
    for one in stored:
        if not one.zero_points:
            yield Tensor(name=one.name, values=one.read(), packed=one.packed)


def _shapes(checkpoint: Path) -> Shapes:
    """Read the checkpoint's tensor shapes from the headers of its safetensors files."""
    index = checkpoint / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(names):
        with safe_open(checkpoint / name, framework="numpy") as file:
            shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return shapes


def _expected_bits(recipe: "Onnx", shapes: Shapes, config: Mapping[str, Any]) -> tuple[float, float]:
    """Return the least and the most bits that this recipe can store such tensors in.

    Vectors and the input embedding are float32. A head tied to the embedding is stored once when both have one format:
    float32, or 4 bits; else the head is stored as well.
    """
    low = high = 0.0
    tied = bool(config.get("tie_word_embeddings", not any(name.endswith(HEADS) for name in shapes)))
    for name, shape in shapes.items():
        floats = 32.0 * math.prod(shape)
        if recipe.precision == "fp32" or len(shape) < 2:
            low, high = low + floats, high + floats
            continue
        least, most = _quantized_bits(recipe, shape)
        if name.endswith(EMBEDDINGS):
            shared = recipe.precision == "int4"
            if tied and not shared:
                least, most = least + floats, most + floats
            elif not tied:
                least = most = _quantized_bits(recipe, shape)[0] if recipe.quantize_embeddings else floats
        elif tied and name.endswith(HEADS):
            continue
        low, high = low + least, high + most
    return low, high


def _quantized_bits(recipe: "Onnx", shape: tuple[int, ...]) -> tuple[float, float]:
    """Bits of a MatMulNBits matrix: packed integers, a float32 scale a block, with k_quant a zero point a block."""
    columns = shape[-1]
    blocks = math.ceil(columns / recipe.block_size)

    def bits(width: int) -> float:
        zero_points = 8 * math.ceil(blocks * width / 8) if recipe.effective_algorithm == "k_quant" else 0
        return math.prod(shape[:-1]) * (blocks * (recipe.block_size * width + 32) + zero_points)

    width = 8 if recipe.precision == "int8" else 4
    return bits(width), bits(width if recipe.int8_parts == "none" else 8)


def _tokenizer(model: Any, artifact: Path) -> Tokenizer:
    """Describe what onnxruntime-genai's own tokenizer makes of the folder.

    genai_config.json always has a BOS, 1 where the checkpoint has none, and may list several EOS; the ones that the
    tokenizer names are reported, where generation knows them.
    """
    tokenizer = genai.library().Tokenizer(model)
    tokenizer.update_options(add_special_tokens="false")
    adding = genai.library().Tokenizer(model)
    adding.update_options(add_special_tokens="true")

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        plain = json.dumps([message.model_dump() for message in messages])
        try:
            # Without special tokens, as the library does unless asked: the template wrote those that are wanted.
            text = tokenizer.apply_chat_template(plain, add_generation_prompt=add_generation_prompt)
            return [int(token) for token in tokenizer.encode(text)]
        except RuntimeError as error:
            raise MeasurementError(f"onnxruntime-genai: {str(error).strip().splitlines()[0]}") from error

    section = genai.settings(artifact)["model"]
    config = json.loads((artifact / "tokenizer_config.json").read_bytes())
    eos_ids = section["eos_token_id"] if isinstance(section["eos_token_id"], list) else [section["eos_token_id"]]
    eos = _id(tokenizer, config.get("eos_token"))
    template = config.get("chat_template")
    jinja = artifact / "chat_template.jinja"
    if jinja.is_file():
        template = jinja.read_text(encoding="utf-8")
    bos = int(section["bos_token_id"]) if config.get("bos_token") else None
    return Tokenizer(
        encode=lambda text: [int(token) for token in tokenizer.encode(text)],
        vocabulary_size=int(section["vocab_size"]),
        special_ids={
            "bos": bos,
            "eos": eos if eos in eos_ids else int(eos_ids[0]),
        },
        adds_bos=bos is not None and int(adding.encode("a")[0]) == bos,
        chat_template=template if isinstance(template, str) else None,
        render=render,
        longest_run=build.LONGEST_RUN if (artifact / build.OVERRIDE).exists() else None,
    )


def _id(tokenizer: Any, token: Any) -> int | None:
    """Return the id of a special token as tokenizer_config.json writes it: its text, or an object around it."""
    text = token.get("content") if isinstance(token, dict) else token
    return int(tokenizer.to_token_id(text)) if text else None
