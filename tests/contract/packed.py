"""What tests of artifacts share: the demo checkpoint, its windows, artifacts built once, an unpacking of their own."""

import fcntl
import json
import os
import pydoc_data.topics
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evals.runner import Runner
from evals.scoring import score
from evals.windows import Windows
from pipeline import digests
from pipeline.backends import AnyRecipe
from pipeline.backends.common.causal_lm import CausalLMRunner
from pipeline.compute import Compute
from pipeline.records import Gpu

GPU = Gpu(name="NVIDIA L4", compute_capability="8.9", memory_mib=23034, driver="570.10")
DEMO = Path(__file__).parents[2] / "models" / "demo"
WINDOW = 128
CALIBRATION_WINDOWS = 24
EVALUATION_WINDOWS = 24
CARRIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A trained checkpoint with its corpus, as the stages would hand them over."""

    checkpoint: Path
    corpus: Path
    """Holds calibration.npz."""
    evaluation: Windows
    """Cut from other topics than the calibration windows."""
    nll: float
    """Mean loss of the checkpoint itself on the evaluation windows, nats a token."""


def case(folder: Path) -> Case:
    """Cut windows out of the standard library's topics with the demo's tokenizer, and score the checkpoint."""
    if not (DEMO / "config.json").exists():
        pytest.skip("models/demo holds no checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    rows = []
    for topic in pydoc_data.topics.topics.values():
        ids = tokenizer.encode(str(topic)[:8000], add_special_tokens=False)
        step = WINDOW - 1
        rows += [[tokenizer.bos_token_id, *ids[at : at + step]] for at in range(0, len(ids) - step, step)]
    calibration, evaluation = rows[:CALIBRATION_WINDOWS], rows[-EVALUATION_WINDOWS:]
    _windows(calibration).save(folder / "calibration.npz")
    source = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.bfloat16)
    windows = _windows(evaluation)
    return Case(checkpoint=DEMO, corpus=folder, evaluation=windows, nll=nll(CausalLMRunner(source), windows))


def built(recipe: AnyRecipe, case: Case, factory: pytest.TempPathFactory) -> Path:
    """Return the recipe's artifact of `case`, built once for all files and workers of a run: copy it to change it."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    artifact = shared / f"built-{digests.of_value(recipe.model_dump())[:16]}"
    with artifact.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not artifact.exists():
            partial = artifact.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            recipe.build(case.checkpoint, case.corpus, partial, Compute(threads=2))
            partial.rename(artifact)
    return artifact


def _windows(rows: list[list[int]]) -> Windows:
    ids = np.array(rows, dtype=np.int32)
    return Windows(ids=ids, document=np.zeros(len(ids), np.int32), utf8_bytes=np.ones(len(ids), np.int64))


def nll(runner: Runner, windows: Windows) -> float:
    """Mean negative log-likelihood, nats a token."""
    return float(score(runner, windows).mean())


def logits(runner: Runner, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    return np.concatenate([block.copy() for block in runner.logits(ids)])


def unpacked(artifact: Path, bits: int, group_size: int) -> dict[str, torch.Tensor]:
    """Return the weights that the stored integers, zero points and scales stand for, in float32.

    GPTQ packs along the inputs and stores zero points less one; AWQ packs along the outputs, in the order in which a
    GPU kernel wants to take 8 of them out of a word.
    """
    stored = load_file(artifact / "model.safetensors")
    method = json.loads((artifact / "config.json").read_text())["quantization_config"]["quant_method"]
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "qweight":
            words, zeros = tensor.numpy(), stored[f"{stem}.qzeros"].numpy()
            scales = stored[f"{stem}.scales"].float().numpy()
            if method == "gptq":
                codes, zero = _unpack(words.T, bits).T, _unpack(zeros, bits) + 1
                groups = stored[f"{stem}.g_idx"].numpy()
            else:
                order = [0, 4, 1, 5, 2, 6, 3, 7]
                codes, zero = (
                    _unpack(x, bits).reshape(len(x), -1, 8)[..., order].reshape(len(x), -1) for x in (words, zeros)
                )
                groups = np.arange(len(codes)) // group_size
            weights[f"{stem}.weight"] = torch.from_numpy(((codes - zero[groups]) * scales[groups]).T.astype(np.float32))
        elif leaf not in ("qzeros", "scales", "g_idx"):
            weights[name] = tensor.float()
    return weights


def _unpack(words: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.int64]:
    """Split each row's 32-bit words into integers of `bits` bits, lowest first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    fields = (words.view(np.uint32) if words.flags.c_contiguous else words.copy().view(np.uint32))[:, :, None] >> shifts
    whole: npt.NDArray[np.int64] = (fields & (2**bits - 1)).reshape(len(words), -1).astype(np.int64)
    return whole


def float_model(checkpoint: Path, weights: dict[str, torch.Tensor]) -> Runner:
    """Return the checkpoint's model in float32 with these weights: what an exact kernel would compute."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.load_state_dict(weights)
    return CausalLMRunner(model)


def assert_greedy(runner: Runner, prompt: npt.NDArray[np.int32], tolerance: float) -> None:
    """Every generated token must be the most likely one, near ties (decode and prefill round differently) left open."""
    tokens = list(runner.generate(prompt, 24))
    assert len(tokens) == 24
    whole = np.array([*prompt, *tokens, 0], dtype=np.int32)
    rows = logits(runner, whole)[len(prompt) - 1 : -1]
    chosen = rows[np.arange(24), tokens]
    np.testing.assert_array_less(rows.max(axis=1) - chosen, tolerance)


def assert_anonymous(artifact: Path, *places: Path) -> None:
    """No file may name a folder of the machine that built it."""
    for path in artifact.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for place in (*places, Path.home(), Path("/tmp")):
            found = str(place).encode() in content
            assert not found, f"{path.name} names {place}"


def settings(artifact: Path) -> dict[str, Any]:
    """Return config.json's quantization_config, after checking that the rest is the checkpoint's."""
    config = json.loads((artifact / "config.json").read_text())
    quantization: dict[str, Any] = config.pop("quantization_config")
    assert config == json.loads((DEMO / "config.json").read_text())
    assert quantization == json.loads((artifact / "quantize_config.json").read_text())
    return quantization
