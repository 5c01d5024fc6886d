"""Scoring against the bare tools on the same files, context and threads; its memory with a large vocabulary."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from threadpoolctl import threadpool_limits
from transformers import AutoModelForCausalLM, AutoTokenizer

from evals.divergence import Comparison
from evals.scoring import score
from evals.windows import Windows
from pipeline.backends.common import causal_lm
from pipeline.backends.gguf.backend import Gguf
from pipeline.backends.onnx import genai
from pipeline.backends.onnx.backend import Onnx
from pipeline.compute import Compute
from pipeline.toolchains import llama_cpp
from tests.bench.workspace import PYTHON, Row, random_checkpoint, row, run, seconds, workspace

THREADS = len(os.sched_getaffinity(0))
CONTEXT = 512
FEW, MANY = 4, 20
"""Windows of the evaluation text."""
LEAST = 0.9
LARGE_VOCABULARY, LONG_WINDOW = 150_000, 2048
ROUNDS = 3


def scoring(scratch: Path) -> list[Row]:
    """Tokens per second of scoring over those of the bare tool, on a model whose head is a small part of it.

    llama-perplexity computes the head for half of each window only. Of the demo model that half is a tenth of all work;
    of 150 million parameters under the same vocabulary it is little, as in the models that people serve.
    """
    names = ("gguf-f16", "gguf-q4_k_m", "onnx-fp32")
    clone = workspace(scratch / "clone", names)
    checkpoint = clone / "models/random"
    random_checkpoint(clone / "models/demo", checkpoint, hidden=1024, inner=2816, layers=12, heads=16)
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["checkpoint"]["source"] = "models/random"
    params["corpus"]["evaluation"]["windows"] = MANY
    params["corpus"]["calibration"]["windows"] = 8
    (clone / "params.yaml").write_text(yaml.safe_dump(params))
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    for stage in (["inputs"], ["checkpoint"], ["corpus"], ["reference"], *(["artifact", name] for name in names)):
        run([PYTHON, "-m", "pipeline", *stage], clone, environment)
    text = Windows.load(clone / "corpus/evaluation.npz")
    rows = []
    for name in names[:2]:
        rows += _gguf(clone, name, Gguf.model_validate(params["artifacts"][name]), text)
    runner = causal_lm.load(checkpoint, "bfloat16", Compute(threads=THREADS))
    ours = _rate(text, lambda windows: score(runner, windows))
    rows.append(_ratio("reference scoring / a bare transformers loop", ours, _transformers_loop(checkpoint, text)))
    folder = clone / "artifacts/onnx-fp32"
    with Onnx.model_validate(params["artifacts"]["onnx-fp32"]).open(folder, Compute(threads=THREADS)) as opened:
        ours = _rate(text, lambda windows: score(opened, windows))
    rows.append(_ratio("ONNX scoring / bare onnxruntime-genai", ours, _genai_loop(folder, text)))
    return rows


def vocabulary(scratch: Path) -> list[Row]:
    """Peak memory of scoring windows of 2048 tokens over 150,000 of vocabulary, beyond the model's own bytes."""
    names = ("gguf-f16", "gguf-q4_k_m", "gptq-int4", "onnx-fp32", "onnx-int4")
    folder = workspace(scratch / "large", names)
    random_checkpoint(
        folder / "models/demo", folder / "models/random", hidden=512, inner=1536, layers=4, heads=8,
        vocabulary=LARGE_VOCABULARY, context=2 * LONG_WINDOW,
    )  # fmt: skip
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["checkpoint"]["source"] = "models/random"
    params["corpus"]["window_tokens"] = LONG_WINDOW
    for split in ("calibration", "evaluation"):
        params["corpus"][split]["windows"] = 2
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    for stage in ("inputs", "checkpoint", "corpus"):
        run([PYTHON, "-m", "pipeline", stage], folder, environment)
    weights = sum(path.stat().st_size for path in (folder / "models/random").glob("*.safetensors"))
    rows = [_memory("reference", run([PYTHON, "-m", "pipeline", "reference"], folder, environment), weights)]
    for name in names:
        run([PYTHON, "-m", "pipeline", "artifact", name], folder, environment)
        run([PYTHON, "-m", "pipeline", "quality", name], folder, environment)
        bytes_ = json.loads((folder / "artifacts" / name / "assay.json").read_text())["bytes"]
        peak = json.loads((folder / f"measurements/quality/{name}.json").read_text())["peak_rss_bytes"]
        rows.append(_memory(name, peak, bytes_))
    return rows


def _gguf(clone: Path, name: str, recipe: Gguf, text: Windows) -> list[Row]:
    """Time ours without and with the comparison that gives divergences; llama-perplexity gives none in this mode."""
    path = clone / "artifacts" / name / recipe.file_name
    with threadpool_limits(1, user_api="blas"), recipe.open(path.parent, Compute(threads=THREADS)) as runner:
        plain = _rate(text, lambda windows: score(runner, windows))
        compared = _rate(text, lambda windows: score(runner, windows, Comparison(clone / "reference").observe))
    words = clone / "text.txt"
    tokenizer = AutoTokenizer.from_pretrained(clone / "models/demo")
    words.write_text("\n".join(tokenizer.decode(ids, skip_special_tokens=True) for ids in text.ids), encoding="utf-8")
    theirs = _llama_perplexity(path, words)
    return [
        _ratio(f"{name} scoring / llama-perplexity", plain, theirs),
        row(f"{name} scoring with divergences / llama-perplexity without", compared / theirs),
    ]


def _rate(text: Windows, work: Callable[[Windows], object]) -> float:
    """Tokens per second, the best of some rounds after a warm-up."""
    work(text.first(1))
    return MANY * CONTEXT / min(seconds(lambda: work(text)) for _ in range(ROUNDS))


def _llama_perplexity(model: Path, words: Path) -> float:
    """Tokens per second between two runs of different lengths: loading and tokenizing fall out of the difference."""
    tool = llama_cpp.find().tool("llama-perplexity")

    def best(chunks: int) -> float:
        command: list[str | Path] = [tool, "-m", model, "-f", words, "-c", str(CONTEXT), "-t", str(THREADS)]
        return min(seconds(lambda: run([*command, "--chunks", str(chunks)], words.parent)) for _ in range(ROUNDS))

    return (MANY - FEW) * CONTEXT / (best(MANY) - best(FEW))


def _transformers_loop(folder: Path, text: Windows) -> float:
    model = cast(Any, AutoModelForCausalLM).from_pretrained(folder, dtype="auto").eval()

    def loop(windows: Windows) -> None:
        with torch.inference_mode():
            for row_ in windows.ids.astype(np.int64):
                ids = torch.from_numpy(row_)[None]
                logits = model(input_ids=ids[:, :-1]).logits.float()[0]
                torch.nn.functional.cross_entropy(logits, ids[0, 1:])

    return _rate(text, loop)


def _genai_loop(folder: Path, text: Windows) -> float:
    """One generator, rewound for each window, which is the fastest way that onnxruntime-genai has."""
    og, model = genai.library(), genai.model(folder, THREADS)
    options = og.GeneratorParams(model)
    options.set_search_options(max_length=CONTEXT)
    generator = og.Generator(model, options)

    def loop(windows: Windows) -> None:
        for ids in windows.ids:
            generator.rewind_to(0)
            generator.append_tokens(ids[:-1])
            logits = torch.from_numpy(generator.get_output("logits")[0])
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids[1:].astype(np.int64)))

    return _rate(text, loop)


def _ratio(what: str, ours: float, theirs: float) -> Row:
    return row(what, ours / theirs, at_least=LEAST, prefix=f"{ours:,.0f} / {theirs:,.0f} tok/s = ")


def _memory(name: str, peak: int, bytes_: int) -> Row:
    beyond = (peak - bytes_) / 2**30
    return row(f"peak memory of scoring, {name}, beyond its {bytes_ / 1e6:.0f} MB, GiB", beyond, at_most=1.0)
