"""What an onnxruntime-genai folder must be: the checkpoint's numbers, tokens and chat template; same bytes twice."""

import hashlib
import json
import pydoc_data.topics
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evals.runner import Ids, Logits, Runner
from pipeline.backends.common import checks, hf_tokenizer
from pipeline.backends.contract import Contents
from pipeline.backends.onnx import genai
from pipeline.backends.onnx.backend import Onnx
from pipeline.compute import Compute
from pipeline.errors import BuildError, MeasurementError
from tests.contract.packed import float_model, logits, unpacked
from tests.support.families import FAMILIES

DEMO = Path(__file__).parents[2] / "models" / "demo"
TOKENS = 256

FP32 = Onnx(backend="onnx", precision="fp32")
INT8 = Onnx(backend="onnx", precision="int8")
INT4 = Onnx(backend="onnx", precision="int4")

TEXTS = (
    "The statement binds a name. 12345 times, naïve 日本 😀",
    "def f(x):\n    if x:\n\n        return  [x,   x]  # two    spaces, beyond the length the runtime cuts at\n",
    " leading space",
    # Its apostrophes are where onnxruntime-genai's tokenizer cuts too early when left to itself.
    pydoc_data.topics.topics["attribute-access"],
    "[INST] hi [/INST]</s><s>again",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained demo checkpoint: damage by rounding shows only in weights that have learnt something."""
    if not (DEMO / "config.json").is_file():
        folder = tmp_path_factory.mktemp("random") / "llama-2"
        FAMILIES["llama-2"].make(folder, Path())
        # As LlamaTokenizer, transformers 5 would derive a tokenizer that puts its leading spaces elsewhere than
        # tokenizer.json says, and onnxruntime-genai goes by tokenizer.json.
        path = folder / "tokenizer_config.json"
        path.write_text(path.read_text(encoding="utf-8").replace("LlamaTokenizer", "PreTrainedTokenizerFast"))
        return folder
    folder = tmp_path_factory.mktemp("demo") / "checkpoint"
    folder.mkdir()
    for path in DEMO.iterdir():
        if path.suffix != ".py":
            shutil.copyfile(path, folder / path.name)
    return folder


@pytest.fixture(scope="module")
def ids(checkpoint: Path) -> Ids:
    tokenizer = hf_tokenizer.load(checkpoint)
    text = tokenizer.encode(pydoc_data.topics.topics["with"], add_special_tokens=False)
    return np.array([1, *text], np.int32)[:TOKENS]


def build(recipe: Onnx, checkpoint: Path, out: Path) -> Path:
    out.mkdir(parents=True)
    recipe.build(checkpoint, out, out, Compute(threads=2))
    return out


@pytest.fixture(scope="module")
def fp32(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(FP32, checkpoint, tmp_path_factory.mktemp("fp32") / "artifact")


@pytest.fixture(scope="module")
def int8(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(INT8, checkpoint, tmp_path_factory.mktemp("int8") / "artifact")


@pytest.fixture(scope="module")
def int4(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(INT4, checkpoint, tmp_path_factory.mktemp("int4") / "artifact")


@pytest.fixture(scope="module")
def source_logits(checkpoint: Path, ids: Ids) -> Logits:
    """What plain transformers gives, in float32."""
    model: Any = cast(Any, AutoModelForCausalLM).from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(ids[None, :-1].astype(np.int64))).logits[0]
    return cast(Logits, logits.numpy())


def log_probabilities(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return cast(npt.NDArray[np.float64], shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def nll(logits: Logits, ids: Ids) -> float:
    return float(-log_probabilities(logits)[np.arange(len(ids) - 1), ids[1:]].mean())


def divergence(source: Logits, other: Logits) -> float:
    """Mean Kullback-Leibler divergence in nats a token."""
    p, q = log_probabilities(source), log_probabilities(other)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def score(runner: Runner, ids: Ids) -> Logits:
    return np.concatenate([block.copy() for block in runner.logits(ids)])


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_fp32_scores_like_transformers(fp32: Path, ids: Ids, source_logits: Logits) -> None:
    with FP32.open(fp32, Compute(threads=2)) as runner:
        found = score(runner, ids)
    assert found.shape == source_logits.shape
    assert found.dtype == np.float32
    assert nll(found, ids) == pytest.approx(nll(source_logits, ids), abs=1e-4)
    np.testing.assert_allclose(found, source_logits, atol=2e-3)


def test_fewer_bits_diverge_more(int8: Path, int4: Path, ids: Ids, source_logits: Logits) -> None:
    with INT8.open(int8, Compute(threads=2)) as runner:
        at_8 = divergence(source_logits, score(runner, ids))
    with INT4.open(int4, Compute(threads=2)) as runner:
        at_4 = divergence(source_logits, score(runner, ids))
    assert 1e-7 < at_8 < 0.005
    assert 3 * at_8 < at_4 < 0.2


@pytest.mark.parametrize("recipe", [FP32, INT8, INT4], ids=lambda recipe: recipe.precision)
def test_two_builds_give_the_same_bytes(
    recipe: Onnx, checkpoint: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builder stamps the commit of an enclosing git repository into model.onnx, and is told folders by path."""
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", repository], check=True)
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    commit = ["git", "-C", str(repository), *identity, "commit", "-q", "--allow-empty", "-m", "one"]
    subprocess.run(commit, check=True)
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    elsewhere = tmp_path / "another-name"
    shutil.copytree(checkpoint, elsewhere)
    again = build(recipe, elsewhere, tmp_path / "artifacts" / "other")
    assert hashes(again) == hashes(request.getfixturevalue(recipe.precision))
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["other"]
    for path in again.iterdir():
        data = path.read_bytes()
        assert str(tmp_path).encode() not in data, path
        assert b"another-name" not in data, path


@contextmanager
def inspected(recipe: Onnx, artifact: Path, checkpoint: Path) -> Iterator[tuple[Contents, list[str]]]:
    vocabulary = hf_tokenizer.vocabulary(hf_tokenizer.load(checkpoint), TEXTS)
    with recipe.inspect(artifact, checkpoint) as contents:
        yield contents, checks.problems(contents, vocabulary)


@pytest.mark.parametrize("recipe", [FP32, INT8, INT4], ids=lambda recipe: recipe.precision)
def test_artifact_passes_the_structural_checks(recipe: Onnx, checkpoint: Path, request: pytest.FixtureRequest) -> None:
    """Tensors, bits per weight, special tokens, chat template, and ids of indented and multilingual text."""
    artifact = request.getfixturevalue(recipe.precision)
    with inspected(recipe, artifact, checkpoint) as (contents, problems):
        assert problems == []
        assert contents.tokenizer.chat_template
        # All that lies in the data file are weights, and cosines and sines: float32 [context, head / 2] each.
        model = json.loads((artifact / "genai_config.json").read_text(encoding="utf-8"))["model"]
        caches = 2 * 4 * model["context_length"] * model["decoder"]["head_size"] // 2
        weight_bytes = (artifact / "model.onnx.data").stat().st_size - caches
        parameters = AutoModelForCausalLM.from_pretrained(checkpoint).num_parameters()
        assert contents.bits_per_weight == pytest.approx(8 * weight_bytes / parameters, rel=0.01)


def test_collapsed_weights_are_seen(int4: Path, checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(int4, tmp_path / "broken")
    data = broken / "model.onnx.data"
    data.write_bytes(bytes(data.stat().st_size))
    with inspected(INT4, broken, checkpoint) as (_, problems):
        assert any("MatMul" in problem and "collapsed" in problem for problem in problems)


def test_blocks_give_the_logits_of_one_append(fp32: Path, ids: Ids, monkeypatch: pytest.MonkeyPatch) -> None:
    with FP32.open(fp32, Compute(threads=2)) as runner:
        whole = [block.copy() for block in runner.logits(ids)]
    rows = 60
    monkeypatch.setattr("pipeline.backends.onnx.run.BLOCK_BYTES", rows * 4 * whole[0].shape[1])
    with FP32.open(fp32, Compute(threads=2)) as runner:
        blocks = [block.copy() for block in runner.logits(ids)]
    assert len(whole) == 1
    assert [len(block) for block in blocks] == [60, 60, 60, 60, 15]
    np.testing.assert_allclose(np.concatenate(blocks), whole[0], atol=1e-3)


def test_sliding_window_layers_score_windows_after_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2's layers have windows of 32 tokens, in a cache that is used again from its beginning."""
    FAMILIES["gemma-2"].make(tmp_path / "gemma", Path())
    artifact = build(FP32, tmp_path / "gemma", tmp_path / "artifact")
    windows = np.random.default_rng(7).integers(4, 900, (2, 100)).astype(np.int32)
    model: Any = cast(Any, AutoModelForCausalLM).from_pretrained(
        tmp_path / "gemma", dtype=torch.float32, attn_implementation="eager"
    )
    for name, weight in model.named_parameters():
        if "norm" in name:
            # Gemma scales by 1 + weight; the builder adds in the checkpoint's bfloat16 and keeps the rounded sum.
            weight.data = (1 + weight.data.bfloat16()).float() - 1
    with torch.inference_mode():
        expected = model(torch.from_numpy(windows[:, :-1].astype(np.int64))).logits.numpy()
    for rows in (99, 40):
        monkeypatch.setattr("pipeline.backends.onnx.run.BLOCK_BYTES", rows * 4 * expected.shape[-1])
        with FP32.open(artifact, Compute(threads=2)) as runner:
            for window, logits in zip(windows, expected, strict=True):
                np.testing.assert_allclose(score(runner, window), logits, atol=2e-3)


def test_logits_are_those_of_onnxruntime_genai(int4: Path, ids: Ids) -> None:
    """The runtime whose folder this is, and others serve it with, keeps the cache itself."""
    og, model = genai.library(), genai.model(int4, threads=2)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=TOKENS)
    generator = og.Generator(model, params)
    generator.append_tokens(ids[:-1])
    with INT4.open(int4, Compute(threads=2)) as runner:
        np.testing.assert_array_equal(score(runner, ids), generator.get_output("logits")[0])


def test_two_loads_agree_to_the_bit(int4: Path, ids: Ids) -> None:
    found = []
    for _ in range(2):
        with INT4.open(int4, Compute(threads=2)) as runner:
            found.append(score(runner, ids))
            found.append(score(runner, ids))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_generation_is_the_argmax_of_scoring_and_passes_end_of_sequence(fp32: Path, ids: Ids, tmp_path: Path) -> None:
    """An end-of-sequence token is a token like any other: neither the last one, nor forbidden."""
    prompt, new_tokens = ids[:20], 12
    with FP32.open(fp32, Compute(threads=2)) as runner:
        made = list(runner.generate(prompt, new_tokens))
        sequence = np.array([*prompt, *made], np.int32)
        scored = score(runner, sequence)
        assert made == [int(row.argmax()) for row in scored[len(prompt) - 1 :]]
        assert list(runner.generate(prompt, new_tokens)) == made
    # Declare the third token of that very sequence to be end-of-sequence, and a penalty that greedy must not heed.
    stopping = shutil.copytree(fp32, tmp_path / "stopping")
    path = stopping / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["eos_token_id"] = made[2]
    config["search"]["repetition_penalty"] = 5.0
    path.write_text(json.dumps(config), encoding="utf-8")
    with FP32.open(stopping, Compute(threads=2)) as runner:
        assert list(runner.generate(prompt, new_tokens)) == made


def test_tokens_come_as_they_are_made(fp32: Path, ids: Ids) -> None:
    with FP32.open(fp32, Compute(threads=2)) as runner:
        first = next(iter(runner.generate(ids[:20], 10)))
        assert first == int(score(runner, ids[:21])[-1].argmax())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model.onnx.data").unlink(), "model.onnx.data"),
        (lambda folder: (folder / "model.onnx.data").open("r+b").truncate(100_000), "out of bounds"),
        (lambda folder: (folder / "model.onnx").open("r+b").truncate(1000), "parsing failed"),
        (lambda folder: (folder / "genai_config.json").unlink(), "genai_config.json: cannot be read"),
        (lambda folder: (folder / "genai_config.json").write_text("{"), "is not JSON"),
    ],
    ids=["no-data", "truncated-data", "truncated-graph", "no-settings", "broken-settings"],
)
def test_damaged_artifact_is_refused(int4: Path, tmp_path: Path, damage: Any, words: str) -> None:
    broken = shutil.copytree(int4, tmp_path / "broken")
    damage(broken)
    with pytest.raises(MeasurementError, match=words), INT4.open(broken, Compute(threads=1)):
        pytest.fail("it loaded")


def test_window_beyond_the_context_is_refused(int4: Path) -> None:
    with INT4.open(int4, Compute(threads=1)) as runner, pytest.raises(MeasurementError, match=r"4096 tokens asked for"):
        next(iter(runner.logits(np.ones(4096, np.int32))))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, None),
        ({"architectures": ["FalconForCausalLM"]}, "does not know"),
        ({"architectures": ["PhiMoEForCausalLM"]}, "for cuda only"),
        ({"architectures": ["WhisperForConditionalGeneration"]}, "not a causal language model"),
        ({"architectures": ["MistralForCausalLM"], "vision_config": {}}, "vision_config"),
        ({"architectures": ["LlamaForCausalLM"], "rope_scaling": {"rope_type": "llama3"}}, None),
        ({"architectures": ["LlamaForCausalLM"], "rope_scaling": {"type": "dynamic"}}, "no dynamic RoPE"),
        ({"architectures": ["MistralForCausalLM"], "rope_parameters": {"rope_type": "yarn"}}, None),
        ({"architectures": ["Gemma3ForCausalLM"]}, "one per layer type"),
        ({"architectures": ["LlamaForCausalLM"], "hidden_act": "xielu"}, "activation xielu"),
        ({"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "gptq"}}, "already quantized"),
        ({"architectures": ["GraniteMoeHybridForCausalLM"], "layer_types": ["mamba"]}, "leaves out"),
        ({"architectures": ["Lfm2ForCausalLM"]}, "convolution states"),
    ],
)
def test_refusals(config: dict[str, Any], words: str | None) -> None:
    reason = INT4.refusal(config)
    assert (reason is None) if words is None else (reason is not None and words in reason)


@pytest.mark.parametrize(
    ("architecture", "vocabulary"),
    [("LlamaForCausalLM", 256), ("LlamaForCausalLM", 512), ("LlamaForCausalLM", 128), ("Phi3ForCausalLM", 1024)],
)
def test_a_vocabulary_as_wide_as_an_inner_layer_is_refused(architecture: str, vocabulary: int) -> None:
    """The builder would take that layer for the output head, without a word; Phi-3's gate and up are one layer."""
    config: dict[str, Any] = {
        "architectures": [architecture],
        "hidden_size": 256,
        "intermediate_size": 512,
        "head_dim": 64,
    }
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    assert INT4.refusal(config | {"vocab_size": 4096}) is None
    assert f"{vocabulary} outputs" in (INT4.refusal(config | {"vocab_size": vocabulary}) or "")


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "fp32", "block_size": 64},
        {"precision": "int8", "int8_parts": "head"},
        {"precision": "int4", "int8_parts": "head", "algorithm": "default"},
        {"precision": "int4", "quantize_embeddings": True},
        {"precision": "fp16"},
    ],
)
def test_settings_without_effect_are_refused(options: dict[str, Any]) -> None:
    """The builder would accept most of these and ignore them, or write a graph that does not load."""
    with pytest.raises(ValueError, match=r"has no effect|needs algorithm|Input should be"):
        Onnx.model_validate({"backend": "onnx", **options})


def packed(checkpoint: Path, folder: Path) -> Path:
    """Write a GPTQ artifact of 4 bits in groups of 64, rounded to nearest, as GPTQModel lays it out."""
    folder.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        for name, weight in load_file(path).items():
            if ".layers." not in name or weight.ndim < 2:
                tensors[name] = weight
                continue
            grouped = weight.float().unflatten(1, (-1, 64))
            scales = (grouped.abs().amax(2) / 8).half()
            codes = (grouped / scales.float()[..., None]).round().clamp(-8, 7).flatten(1).to(torch.int32) + 8
            stem = name.removesuffix("weight")
            tensors[f"{stem}qweight"] = words(codes.T.reshape(-1, 8, len(codes)).transpose(1, 2))
            tensors[f"{stem}qzeros"] = words(torch.full((scales.shape[1], len(codes) // 8, 8), 7))
            tensors[f"{stem}scales"] = scales.T.contiguous()
            tensors[f"{stem}g_idx"] = torch.arange(weight.shape[1], dtype=torch.int32) // 64
    save_file(tensors, folder / "model.safetensors")
    for path in checkpoint.iterdir():
        if "safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text())
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


def words(fields: torch.Tensor) -> torch.Tensor:
    """Pack the last axis, eight integers of 4 bits, into one of 32, lowest first."""
    shifted = fields.numpy().astype(np.uint32) << np.arange(0, 32, 4, dtype=np.uint32)
    return torch.from_numpy(np.ascontiguousarray(np.bitwise_or.reduce(shifted, axis=-1)).view(np.int32))


def test_a_gptq_artifact_is_taken_as_it_is(checkpoint: Path, ids: Ids, tmp_path: Path) -> None:
    """Its integers, scales and zero points, its head in floats: what an exact kernel makes of that very artifact."""
    source = packed(checkpoint, tmp_path / "gptq")
    recipe = Onnx.model_validate(
        {"backend": "onnx", "from": "artifacts/gptq", "precision": "int4", "accuracy_level": 1}
    )
    assert recipe.refusal(json.loads((source / "config.json").read_text())) is None
    artifact = build(recipe, source, tmp_path / "artifact")
    expected = logits(float_model(checkpoint, unpacked(source, 4, 64)), ids)
    with recipe.open(artifact, Compute(threads=2)) as runner:
        np.testing.assert_allclose(score(runner, ids), expected, atol=5e-3)
    with inspected(recipe, artifact, checkpoint) as (_, problems):
        assert problems == []


def test_a_tied_head_is_taken_in_floats_once(checkpoint: Path, ids: Ids, tmp_path: Path) -> None:
    """The builder would round such an embedding to 4 bits of its own, and keep the head beside it."""
    tied = shutil.copytree(checkpoint, tmp_path / "tied")
    weights = {name: one for path in sorted(tied.glob("*.safetensors")) for name, one in load_file(path).items()}
    for path in tied.glob("*.safetensors*"):
        path.unlink()
    del weights["lm_head.weight"]
    save_file(weights, tied / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    source = packed(tied, tmp_path / "gptq")
    recipe = Onnx.model_validate(
        {"backend": "onnx", "from": "artifacts/gptq", "precision": "int4", "accuracy_level": 1}
    )
    artifact = build(recipe, source, tmp_path / "artifact")
    with inspected(recipe, artifact, tied) as (_, problems):
        assert problems == []
    stored = unpacked(source, 4, 64)
    expected = logits(float_model(tied, stored | {"lm_head.weight": stored["model.embed_tokens.weight"]}), ids)
    with recipe.open(artifact, Compute(threads=2)) as runner:
        np.testing.assert_allclose(score(runner, ids), expected, atol=5e-3)


def test_gptq_groups_out_of_order_are_refused(tmp_path: Path) -> None:
    (tmp_path / "gptq").mkdir()
    (tmp_path / "gptq" / "config.json").write_text("{}")
    save_file({"model.layers.0.mlp.g_idx": torch.tensor([1, 1, 0, 0])}, tmp_path / "gptq" / "model.safetensors")
    recipe = Onnx.model_validate({"backend": "onnx", "from": "artifacts/gptq", "precision": "int4"})
    with pytest.raises(BuildError, match="out of order"):
        build(recipe, tmp_path / "gptq", tmp_path / "artifact")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "no GPTQ or AWQ artifact"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 64}, "needs 4 bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True}, "activation order"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, "blocks of -1"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, None),
    ],
)
def test_sources_that_the_builder_cannot_take_as_they_are(settings: dict[str, Any], words: str | None) -> None:
    recipe = Onnx.model_validate({"backend": "onnx", "from": "artifacts/gptq", "precision": "int4"})
    reason = recipe.refusal({"architectures": ["LlamaForCausalLM"], "quantization_config": settings})
    assert reason is None if words is None else words in str(reason)


@pytest.mark.parametrize(
    "options",
    [{"precision": "fp32"}, {"precision": "int8", "exporter": "optimum"}, {"precision": "int4", "block_size": 64}],
)
def test_options_that_a_quantized_source_leaves_no_room_for(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="artifacts/gptq"):
        Onnx.model_validate({"backend": "onnx", "from": "artifacts/gptq", **options})
