"""Building with onnxruntime-genai's model builder."""

import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors import safe_open

from pipeline import processes
from pipeline.backends.common import stored
from pipeline.backends.contract import Built
from pipeline.backends.onnx import genai, graph
from pipeline.backends.onnx.recipe import OnnxRecipe
from pipeline.errors import BuildError

TOOLS = ("onnxruntime-genai", "onnxruntime", "onnx-ir", "onnx", "torch", "transformers", "numpy")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""Files of which the checkpoint's own are kept. The builder writes them anew through transformers, which for some
classes derives the merges and the pre-tokenizer again rather than copying them."""

OVERRIDE = "tokenizer_module.json"
"""Takes precedence over tokenizer_config.json for this runtime alone; transformers does not read it."""

LONGEST_RUN = 100
"""Characters without a space of which a SentencePiece vocabulary's ids are right; after them onnxruntime-genai's
tokenizer cuts, whatever the merges say."""

WRITTEN = ("model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json")

ENVIRONMENT = {
    **genai.NO_TELEMETRY,
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",  # so that its lines come when they are printed
    # The builder stamps model.onnx with the commit of whatever git repository encloses its installation, which for a
    # .venv inside a clone is the clone's own. Shown no repository, it takes the commit that its wheel was made from.
    "GIT_DIR": os.devnull,
}


def build(recipe: OnnxRecipe, checkpoint: Path, out: Path) -> Built:
    """Run the builder in a process of its own: its imports and the memory of two copies of the model end with it.

    It never runs code from the checkpoint (hf_remote is false by default), and no token is looked up.
    """
    if recipe.source != "checkpoint":
        _check_groups(checkpoint)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=out.parent) as scratch:
        command: list[str | Path] = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["--input", checkpoint.resolve(), "--output", out.resolve()]
        command += ["--precision", recipe.precision, "--execution_provider", "cpu", "--cache_dir", scratch]
        command += ["--extra_options", *_options(recipe)]
        # Run from an empty folder: `python -m` puts the working directory first on the import path.
        what = f"onnxruntime-genai's model builder at {recipe.precision}"
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        layers = processes.count(r"Reading layer (\d+)", total=config.get("num_hidden_layers", 0))
        processes.run(command, what=what, env={**os.environ, **ENVIRONMENT}, cwd=Path(scratch), progress=layers)
    for name in TOKENIZER_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, out / name)
    missing = [name for name in WRITTEN if not (out / name).is_file()]
    if missing:
        raise BuildError(
            f"onnxruntime-genai's model builder ended without an error but wrote no {missing[0]}; "
            "is the checkpoint's tokenizer of a kind that has a tokenizer.json?"
        )
    notes = _set_tokenizer_class(out) + _notes(recipe, out)
    return Built(tools={name: importlib.metadata.version(name) for name in TOOLS}, notes=notes)


def _check_groups(source: Path) -> None:
    """Refuse GPTQ groups whose columns are no neighbours: the builder unpacks by their numbers, and packs without."""
    for path in stored.files(source):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping: it has no iterator)
                if not name.endswith(".g_idx"):
                    continue
                groups = file.get_tensor(name)
                size = len(groups) // (int(groups.max()) + 1)
                if (groups != np.arange(len(groups)) // size).any():
                    raise BuildError(f"{source}: {name} puts columns into groups out of order; ONNX has none such")


def _set_tokenizer_class(out: Path) -> tuple[str, ...]:
    """Have onnxruntime-genai tokenize SentencePiece BPE vocabularies as nearly exactly as it can; note what remains.

    For all classes but GemmaTokenizer its tokenizer cuts the text before it merges, at apostrophes for one, and loses
    the merges across the cuts. On the standard library's documentation the ids of 36 of 708 documents then differ from
    the checkpoint's; as GemmaTokenizer 3 do, all in rules of more than 100 hyphens, where it still cuts.
    """
    decoder = json.loads((out / "tokenizer.json").read_bytes()).get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    if not any(step.get("type") == "Replace" and step.get("pattern") == {"String": "▁"} for step in steps):
        return ()
    override = json.dumps({"tokenizer_class": "GemmaTokenizer"}) + "\n"
    (out / OVERRIDE).write_text(override, encoding="utf-8")
    limit = f"{LONGEST_RUN} characters without a space"
    return (f"onnxruntime-genai's own tokenizer may give other ids in runs of over {limit}",)


def _options(recipe: OnnxRecipe) -> list[str]:
    if recipe.precision == "fp32":
        return ["hf_token=false"]
    if recipe.source != "checkpoint":
        # What is float in such a folder the builder would round itself: the head, and the embedding when it is the
        # head as well. Left alone, the two are stored once.
        floats = "/lm_head/MatMul,/model/embed_tokens/Gather"
        return ["hf_token=false", f"accuracy_level={recipe.accuracy_level}", f"nodes_to_exclude={floats}"]
    options = [
        "hf_token=false",
        f"algo_config={recipe.effective_algorithm}",
        f"block_size={recipe.block_size}",
        f"accuracy_level={recipe.accuracy_level}",
    ]
    if recipe.quantize_embeddings:
        options.append("op_types_to_quantize=MatMul/Gather")
    parts = {"none": "", "head": "last_matmul:int8", "sensitive": "last_matmul:int8,mixed_layers:int8"}
    if recipe.int8_parts != "none":
        options.append(f"matmul_mixed_precision={parts[recipe.int8_parts]}")
    return options


def _notes(recipe: OnnxRecipe, out: Path) -> tuple[str, ...]:
    """Say which weight matrices a quantized artifact keeps in float32, and how much of it they are."""
    if recipe.precision == "fp32":
        return ()
    weights = list(graph.weights(out))
    total = sum(one.bytes for one in weights)
    if recipe.source != "checkpoint":
        floats = [one for one in weights if not one.packed and len(one.proto.dims) >= 2]
        return tuple(
            f"{one.name} is kept in float32, as {recipe.source} keeps it in floats: {one.bytes} of {total} weight bytes"
            for one in floats
        )
    kept = [one for one in weights if one.embedding and not one.packed]
    return tuple(
        f"{one.name} is kept in float32: {one.bytes} of {total} weight bytes; onnxruntime-genai quantizes an input "
        "embedding at int4 only, when it is tied to the head or quantize_embeddings asks for it"
        for one in kept
    )
