"""Continuations of one prompt, scored together, get the logits that each gets as one sequence of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from evals.runner import Ids, Runner
from pipeline.backends.common import causal_lm
from pipeline.backends.gguf import run as gguf_run
from pipeline.backends.gguf.backend import Gguf
from pipeline.backends.onnx import run as onnx_run
from pipeline.backends.onnx.backend import Onnx
from pipeline.compute import Compute
from pipeline.errors import RequirementError
from pipeline.toolchains import llama_cpp
from tests.support.families import FAMILIES
from tests.support.vocabularies import ByteLevel

PROMPT_TOKENS = 45
"""More than the sliding window of Gemma's small checkpoints, 32."""

GGUF_TOLERANCE = 0.03
"""Its cache is float16, and flash attention sums in it, in an order that depends on the batch."""

LENGTHS = (1, 4, 1, 9, 40, 2, *range(1, 14))
"""More continuations than GGUF has sequences for."""


@pytest.fixture(scope="module")
def vocabularies() -> Path | None:
    try:
        return llama_cpp.find().vocabularies
    except RequirementError:
        return None


@pytest.fixture(scope="module")
def checkpoint(vocabularies: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        if vocabularies is None and isinstance(FAMILIES[name].vocabulary, ByteLevel):
            pytest.skip("its real vocabulary comes with the llama.cpp sources; run `make setup`")
        folder = tmp_path_factory.mktemp(name) / "checkpoint"
        FAMILIES[name].make(folder, vocabularies or Path())
        return folder

    return make


def sequences(vocabulary: int) -> tuple[Ids, list[Ids]]:
    random = np.random.default_rng(0)
    prompt, *several = (
        random.integers(3, min(vocabulary, 500), tokens, dtype=np.int32) for tokens in (PROMPT_TOKENS, *LENGTHS)
    )
    return prompt, several


def largest_error(runner: Runner, vocabulary: int) -> float:
    """Largest difference of a log-probability from the whole sequences' own rows; shapes must agree."""
    prompt, several = sequences(vocabulary)
    prompts = [(prompt, several), (prompt[5:], several[1:3]), (prompt[:7], several[:1]), (prompt[9:20], several[3:])]
    together = [logits.copy() for logits in runner.continuations(prompts)]
    errors = []
    pairs = [(start, continuation) for start, continuations in prompts for continuation in continuations]
    for (start, continuation), logits in zip(pairs, together, strict=True):
        blocks = [block.copy() for block in runner.logits(np.concatenate([start, continuation]))]
        expected = np.concatenate(blocks)[len(start) - 1 :]
        assert logits.shape == expected.shape
        errors.append(np.abs(log_softmax(logits, axis=1) - log_softmax(expected, axis=1)).max())
    return float(max(errors))


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers(name: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    model = cast(Any, AutoModelForCausalLM).from_pretrained(checkpoint(name), dtype=torch.float32)
    vocabulary = model.config.vocab_size
    assert largest_error(causal_lm.CausalLMRunner(model), vocabulary) < 1e-4
    # Room for 24 rows of logits, less than the longest continuation takes, and hardly more than one copy of the cache.
    monkeypatch.setattr(causal_lm, "BLOCK_BYTES", 24 * 4 * vocabulary)
    assert largest_error(causal_lm.CausalLMRunner(model), vocabulary) < 1e-4


@pytest.mark.parametrize("name", ["llama-2", "gemma-2"])
def test_gguf(name: str, checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Gguf(backend="gguf", quantization="F16", imatrix=False)
    if missing := recipe.requirements():
        pytest.skip(missing[0].what)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "artifacts" / name
    out.mkdir(parents=True)
    recipe.build(checkpoint(name), tmp_path, out, Compute(threads=2))
    vocabulary = 500
    with recipe.open(out, Compute(threads=2)) as runner:
        assert largest_error(runner, vocabulary) < GGUF_TOLERANCE
    monkeypatch.setattr(gguf_run, "BATCH_TOKENS", 16)
    with recipe.open(out, Compute(threads=2)) as runner:
        assert largest_error(runner, vocabulary) < GGUF_TOLERANCE


@pytest.mark.parametrize("name", ["llama-2", "gemma-2"])
def test_onnx(name: str, checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma's layers with sliding windows go back to the prompt's end as the others do."""
    recipe = Onnx(backend="onnx", precision="fp32")
    if missing := recipe.requirements():
        pytest.skip(missing[0].what)
    recipe.build(checkpoint(name), tmp_path, tmp_path / "out", Compute(threads=2))
    with recipe.open(tmp_path / "out", Compute(threads=2)) as runner:
        assert largest_error(runner, 500) < 1e-4
    monkeypatch.setattr(onnx_run, "BLOCK_BYTES", 4 * 4 * 1000)
    with recipe.open(tmp_path / "out", Compute(threads=2)) as runner:
        assert largest_error(runner, 500) < 1e-4
