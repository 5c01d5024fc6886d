"""The scorers against tools that others wrote, on the same files and ids."""

import math
import os
import pydoc_data.topics
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evals import head
from evals.divergence import Comparison
from evals.head import Shape
from evals.perplexity import Nll
from evals.runner import Ids
from evals.scoring import score
from evals.windows import Windows
from pipeline.backends.common import causal_lm
from pipeline.backends.gguf import library
from pipeline.backends.gguf.backend import Gguf
from pipeline.backends.onnx.backend import Onnx
from pipeline.compute import Compute
from pipeline.errors import RequirementError
from pipeline.toolchains import llama_cpp
from pipeline.toolchains.llama_cpp import LlamaCpp

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"
DATA = ROOT.parent / "shared" / "data"
WIKITEXT = DATA / "wikitext-2-raw" / "wiki.test.raw"
TINYSTORIES = DATA / "TinyStories-656K"
CONTEXT, CHUNKS = 512, 12
THREADS = len(os.sched_getaffinity(0))
ATTEMPTS = 3
TOPICS = "\n".join(str(topic) for topic in pydoc_data.topics.topics.values())
EXACT = Gguf(backend="gguf", quantization="F16")
QUANTIZED = Gguf(backend="gguf", quantization="Q4_0", imatrix=False)


def windows(ids: Ids) -> Windows:
    count = len(ids)
    return Windows(ids=ids, document=np.arange(count, dtype=np.int32), utf8_bytes=np.ones(count, np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Two GGUF files of the demo checkpoint and a text, with what llama-perplexity says of them."""

    exact: Path
    quantized: Path
    text: Path
    base: Path
    """Distributions of the exact one, as llama-perplexity keeps them."""
    exact_output: str
    quantized_output: str


def llama_perplexity(toolchain: LlamaCpp, model: Path, text: Path, base: Path, *extra: str) -> str:
    """Run it until it prints its result: now and then it ends with exit code 0 and without its last lines."""
    command: list[str | Path] = [toolchain.tool("llama-perplexity"), "-m", model, "-f", text, "-c", str(CONTEXT)]
    command += ["-t", str(THREADS), "--chunks", str(CHUNKS), "--kl-divergence-base", base, *extra]
    wanted = "RMS Δp" if extra else "Final estimate: PPL"
    output = ""
    for _ in range(ATTEMPTS):
        output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout
        if wanted in output:
            return output
    raise AssertionError(f"llama-perplexity printed no {wanted} in {ATTEMPTS} runs:\n{output[-2000:]}")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    try:
        toolchain = llama_cpp.find()
    except RequirementError as error:
        pytest.skip(str(error))
    if not WIKITEXT.exists():
        pytest.skip("wiki.test.raw is not there")
    folder = tmp_path_factory.mktemp("oracle")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = []
        for recipe in (EXACT, QUANTIZED):
            out = folder / recipe.quantization
            out.mkdir()
            recipe.build(DEMO, folder, out, Compute(threads=2))
            made.append(out / recipe.file_name)
    exact, quantized = made
    text, base = folder / "text.txt", folder / "base.kld"
    text.write_text(WIKITEXT.read_text(encoding="utf-8")[:60_000], encoding="utf-8")
    return Files(
        exact=exact,
        quantized=quantized,
        text=text,
        base=base,
        exact_output=llama_perplexity(toolchain, exact, text, base),
        quantized_output=llama_perplexity(toolchain, quantized, text, base, "--kl-divergence"),
    )


def chunks(files: Files) -> Windows:
    """Cut the text as llama-perplexity does: consecutive chunks, BOS in place of each one's first token."""
    with library.model(files.exact, vocabulary_only=True) as model:
        ids = library.tokenize(model, files.text.read_text(encoding="utf-8"))
    bos = int(AutoTokenizer.from_pretrained(DEMO).bos_token_id)
    cut = np.concatenate([[bos], ids])[: CHUNKS * CONTEXT].reshape(CHUNKS, CONTEXT).astype(np.int32)
    cut[:, 0] = bos
    return windows(cut)


def second_half(values: Nll) -> Nll:
    """Return what llama-perplexity scores of each chunk: the tokens that have at least half a context before them."""
    return values[:, CONTEXT // 2 :]


def printed(output: str, label: str) -> float:
    """Find a figure in llama-perplexity's output."""
    match = re.search(rf"{label}\s*[:=]\s*(-?[\d.]+)", output)
    assert match, f"no {label} in:\n{output[-2000:]}"
    return float(match[1])


def test_gguf_perplexity_is_llama_perplexitys(files: Files) -> None:
    for recipe, path, output, label in (
        (EXACT, files.exact, files.exact_output, r"Final estimate: PPL"),
        (QUANTIZED, files.quantized, files.quantized_output, r"Mean PPL\(Q\)"),
    ):
        with recipe.open(path.parent, Compute(threads=THREADS)) as runner:
            nll = score(runner, chunks(files))
        assert math.exp(second_half(nll).mean()) == pytest.approx(printed(output, label), rel=1e-3)


def test_divergence_is_llama_perplexitys(files: Files, tmp_path: Path) -> None:
    """The unquantized file's own logits stand for hidden states, with a head that changes nothing."""
    text = chunks(files)
    with EXACT.open(files.exact.parent, Compute(threads=THREADS)) as runner:
        hidden = np.stack([np.concatenate([block.copy() for block in runner.logits(ids)]) for ids in text.ids])
    np.save(tmp_path / "hidden.npy", hidden)
    head.save(tmp_path, np.eye(hidden.shape[2], dtype=np.float32), None, Shape())
    comparison = Comparison(tmp_path)
    with QUANTIZED.open(files.quantized.parent, Compute(threads=THREADS)) as runner:
        score(runner, text, comparison.observe)
    kld, output = second_half(comparison.kld), files.quantized_output
    assert float(kld.mean()) == pytest.approx(printed(output, "Mean    KLD"), rel=0.02)
    assert float(np.median(kld)) == pytest.approx(printed(output, "Median  KLD"), rel=0.02)
    assert float(np.quantile(kld, 0.99)) == pytest.approx(printed(output, r"99.0%   KLD"), rel=0.05)
    same = second_half(comparison.same.astype(np.float64)).mean()
    assert 100 * float(same) == pytest.approx(printed(output, "Same top p"), abs=0.3)


def plain_loop(folder: Path, dtype: str, wide_head: bool, text: Windows) -> float:
    """The loop that every tutorial shows: mean cross-entropy, nats a token."""
    model = cast(Any, AutoModelForCausalLM).from_pretrained(folder, dtype=getattr(torch, dtype))
    total = 0.0
    with torch.inference_mode():
        for row in text.ids.astype(np.int64):
            ids = torch.from_numpy(row)[None]
            if wide_head:
                logits = model.model(input_ids=ids).last_hidden_state.float() @ model.lm_head.weight.float().T
            else:
                logits = model(input_ids=ids).logits.float()
            total += float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))
    return total / (text.ids.size - len(text))


def real_text(folder: Path) -> Windows:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sample = (DATA / "tinystories_sample.txt").read_text(encoding="utf-8") if folder == TINYSTORIES else TOPICS
    ids = np.array(tokenizer.encode(sample, add_special_tokens=False, verbose=False), np.int32)
    return windows(ids[: 256 * 40].reshape(40, 256))


@pytest.mark.parametrize(
    ("folder", "dtype", "wide_head"),
    [(DEMO, "bfloat16", False), (TINYSTORIES, "float32", False), (TINYSTORIES, "bfloat16", True)],
    ids=["demo", "TinyStories", "TinyStories in bfloat16"],
)
def test_the_reference_is_a_plain_loop(folder: Path, dtype: str, wide_head: bool) -> None:
    """Perplexity within 1e-4.

    The reference keeps its head's products in float32. Where a loop rounds them to bfloat16, its perplexity is a little
    higher: by 0.2e-4 of the demo's, by 1.5e-4 of TinyStories's, which is therefore compared with a wide head.
    """
    if not folder.exists():
        pytest.skip(f"{folder.name} is not there")
    text = real_text(folder)
    nll = score(causal_lm.load(folder, dtype, Compute(threads=THREADS)), text).mean()
    assert math.exp(nll - plain_loop(folder, dtype, wide_head, text)) == pytest.approx(1, abs=1e-4)


def test_onnx_fp32_is_the_float32_reference(tmp_path: Path) -> None:
    recipe = Onnx(backend="onnx", precision="fp32")
    (tmp_path / "out").mkdir()
    recipe.build(DEMO, tmp_path, tmp_path / "out", Compute(threads=2))
    random = np.random.default_rng(0)
    text = windows(random.integers(3, 4096, size=(8, 256), dtype=np.int32))
    with recipe.open(tmp_path / "out", Compute(threads=THREADS)) as runner:
        nll = score(runner, text)
    expected = score(causal_lm.load(DEMO, "float32", Compute(threads=THREADS)), text)
    assert math.exp(nll.mean() - expected.mean()) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(nll, expected, atol=2e-3)
