"""Reading an ONNX folder back for the structural checks."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.backends.common import hf_tokenizer
from pipeline.backends.contract import Contents, Tensor, Tokenizer
from pipeline.backends.onnx import build, genai, graph, sizes
from pipeline.backends.onnx.optimum.decoder import GrowingDecoder
from pipeline.backends.onnx.recipe import OnnxRecipe
from pipeline.compute import Compute
from pipeline.errors import MeasurementError
from pipeline.records import Message
from pipeline.sizing import read

TOLERANCE = 0.02
"""The share by which bits per weight may be off: fused and rescaled norms, routers that stay in float32."""


@contextmanager
def contents(recipe: OnnxRecipe, artifact: Path, checkpoint: Path) -> Iterator[Contents]:
    """Open the artifact in its own runtime, so that a graph which does not load is found here, and read its tensors."""
    if recipe.exporter == "optimum":
        GrowingDecoder(artifact, Compute(threads=1))
        tokenizer = hf_tokenizer.describe(artifact)
    else:
        model = genai.model(artifact, threads=1)
        tokenizer = _tokenizer(model, artifact)
    original = read.folder(checkpoint)
    parameters = original.parameters
    stored = list(graph.weights(artifact))
    low, high = map(sum, zip(*(sizes.bits(recipe, one, tied=original.tied) for one in original.weights), strict=True))
    yield Contents(
        tensors=_tensors(stored),
        bits_per_weight=8 * sum(one.bytes for one in stored) / parameters,
        expected_bits_per_weight=(low / parameters * (1 - TOLERANCE), high / parameters * (1 + TOLERANCE)),
        tokenizer=tokenizer,
    )


def _tensors(stored: Iterable[graph.Stored]) -> Iterator[Tensor]:
    """Read one tensor after the other; zero points are left out, which may rightly be the same everywhere."""
    for one in stored:
        if not one.zero_points:
            yield Tensor(name=one.name, values=one.read(), packed=one.packed)


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
