"""Building through Optimum: exported, held against the checkpoint, then quantized."""

import importlib.metadata
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from evals.runner import Ids, Logits
from pipeline import processes
from pipeline.backends.contract import Built
from pipeline.backends.onnx import genai, graph
from pipeline.backends.onnx.optimum.decoder import GRAPH, GrowingDecoder, joined
from pipeline.backends.onnx.recipe import OnnxRecipe
from pipeline.compute import Compute
from pipeline.errors import BuildError
from pipeline.toolchains import environments

REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
SCRIPT = Path(__file__).with_name("export.py")

OFFLINE = {
    **genai.NO_TELEMETRY,
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

THEIRS = ("optimum-onnx", "optimum", "transformers", "torch")
OURS = ("onnxruntime", "onnx", "numpy", "transformers")

COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
"""Files that the artifact takes from the checkpoint byte for byte."""

DATA = "model.onnx.data"
LEAST_DATA_BYTES = 1024
"""Smaller tensors, shapes and constants among them, stay in the graph."""

PROBE_TOKENS = 96
MOST_DIFFERENCE = 0.02
"""The largest difference of logits to the checkpoint's, as a share of the standard deviation of these. Sums in another
order make at most a thousandth; a rotation by other angles, a lost scale or a window in the wrong place a tenth or
more."""


def build(recipe: OnnxRecipe, checkpoint: Path, out: Path, compute: Compute) -> Built:
    """Write the graph and the checkpoint's own other files. BuildError where the graph computes something else."""
    environment = environments.environment("optimum", REQUIREMENTS)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=out.parent) as scratch:
        job = {"checkpoint": str(checkpoint.resolve()), "out": str(Path(scratch).resolve())}
        steps = processes.count(r"step (\d+) of (\d+)")
        environments.call(environment, SCRIPT, job, what="Optimum's export", progress=steps, env=OFFLINE)
        source = Path(scratch) / GRAPH
        prove(checkpoint, source, compute)
        if recipe.precision == "int8":
            source = _quantized(source)
        _save(source, out)
    for name in COMPANIONS:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, out / name)
    tools = {f"{name} (export)": environment.version(name) for name in THEIRS}
    return Built(
        tools=tools | {name: importlib.metadata.version(name) for name in OURS}, notes=_notes(out, recipe.precision)
    )


def prove(checkpoint: Path, source: Path, compute: Compute) -> None:
    """Hold the graph against the checkpoint: at once, a part and then token by token, and padded beside another.

    The exporter follows one run of the model with a transformers of another release: what that reads otherwise in
    config.json, or what depends on the length of that run, is in the graph for good, and nothing says so.
    """
    ids = _probe(checkpoint)
    expected = _reference(checkpoint, ids, compute)
    decoder = GrowingDecoder(checkpoint, compute, source)
    half, quarter = len(ids) // 2, len(ids) // 4
    whole, _ = decoder.append(decoder.empty(), ids[None], [0])
    _compare("a whole sequence", whole[0], expected)
    start, past = decoder.append(decoder.empty(), ids[None, :half], [0])
    rows = [start[0].copy()]
    at_quarter = decoder.append(decoder.empty(), ids[None, :quarter], [0])[1]
    both = joined(decoder, [(past, 0, half), (at_quarter, 0, quarter)])
    middle, past = decoder.append(past, ids[None, half : half + quarter], [half])
    rows.append(middle[0].copy())
    for at in range(half + quarter, len(ids)):
        one, past = decoder.append(past, ids[None, at : at + 1], [at])
        rows.append(one[0].copy())
    _compare("a sequence fed in parts", np.concatenate(rows), expected)
    beside, _ = decoder.append(both, ids[[half, quarter], None], [half, quarter])
    _compare("sequences of different lengths together", beside[:, 0], expected[[half, quarter]])


def _probe(checkpoint: Path) -> Ids:
    """Return ids spread over the vocabulary, the same each time."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return np.random.default_rng(0).integers(0, config["vocab_size"], PROBE_TOKENS).astype(np.int32)


def _reference(checkpoint: Path, ids: Ids, compute: Compute) -> Logits:
    """Return the checkpoint's logits in float32, as the reference is made."""
    from pipeline.backends.common import causal_lm

    model = causal_lm.load(checkpoint, "float32", Compute(threads=compute.threads))
    return np.concatenate([block.copy() for block in model.logits(np.append(ids, ids[:1]))])


def _compare(what: str, found: Logits, expected: Logits) -> None:
    difference = float(np.abs(found - expected).max() / expected.std())
    if not difference <= MOST_DIFFERENCE:  # NaN is a difference, too
        raise BuildError(
            f"Optimum's graph computes something else than the checkpoint: the logits of {what} are up to "
            f"{difference:.2g} standard deviations away, expected at most {MOST_DIFFERENCE}; leave this recipe out of "
            "params.yaml for this model"
        )


def _quantized(source: Path) -> Path:
    """Round weight matrices to int8, one scale a column; activations are rounded as they come.

    The head included: on the demo that costs a KL divergence of 0.0003 nats beside 0.0034 of all else, and saves a
    quarter of the bytes. 7 of the 8 bits are used, as processors without VNNI instructions add pairs of products in 16
    bits, and would cut the largest ones off.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = source.with_name("int8.onnx")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advises a preparation that folds what the exporter has folded
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
    finally:
        logging.disable(level)
    return target


def _save(source: Path, out: Path) -> None:
    """Write the graph with its weights beside it, and nothing in it of where and with what it was made."""
    model = onnx.load(source)
    _tie(model.graph)
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.save_model(
        model,
        out / GRAPH,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=DATA,
        size_threshold=LEAST_DATA_BYTES,
    )
    (out / DATA).chmod(0o644)  # onnx creates it for its owner alone, and an image is served by somebody else


def _tie(graph_: Any) -> None:
    """Store a head that is the input embedding once, where both are floats: the exporter turns a copy round."""
    tensors = {one.name: one for one in graph_.initializer}
    embeddings = {node.input[0] for node in graph_.node if node.op_type == "Gather"} & set(tensors)
    for node in graph_.node:
        head = tensors.get(node.input[1]) if node.op_type == "MatMul" else None
        for name in sorted(embeddings):
            if head is None or list(head.dims) != list(reversed(tensors[name].dims)) or len(head.dims) != 2:
                continue
            values = onnx.numpy_helper.to_array(tensors[name])
            if np.array_equal(onnx.numpy_helper.to_array(head), values.T):
                turned = onnx.helper.make_node("Transpose", [name], [head.name], f"/{head.name}/Transpose", perm=[1, 0])
                graph_.initializer.remove(head)
                graph_.node.insert(0, turned)
                return


def _notes(out: Path, precision: str) -> tuple[str, ...]:
    """Say what a quantized artifact keeps in float32, and what its activations depend on."""
    if precision == "fp32":
        return ()
    stored = list(graph.weights(out))
    total = sum(one.bytes for one in stored)
    kept = [one for one in stored if not one.packed and len(one.proto.dims) >= 2]
    return (
        "activations are rounded to 8 bits with one scale for all tokens of a pass, so a token's logits depend a "
        "little on the tokens beside it",
        *(f"{one.name} is kept in float32: {one.bytes} of {total} weight bytes" for one in kept),
    )
