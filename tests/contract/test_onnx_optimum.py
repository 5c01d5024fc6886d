"""What Optimum's exporter must give: the checkpoint's numbers in plain onnxruntime, same bytes twice, slots apart."""

import asyncio
import hashlib
import json
import pydoc_data.topics
import shutil
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from containers.engines.contract import Sampling
from containers.engines.onnxruntime.growing import GrowingSlots
from containers.engines.python import PythonEngine
from evals.runner import Ids, Logits, Runner
from pipeline import architectures
from pipeline.backends.common import checks, hf_tokenizer
from pipeline.backends.onnx.backend import Onnx
from pipeline.backends.onnx.optimum import build as optimum
from pipeline.backends.onnx.optimum.decoder import GrowingDecoder
from pipeline.backends.onnx.run import OnnxRunner
from pipeline.compute import Compute
from pipeline.errors import BuildError, MeasurementError, RequirementError
from pipeline.records import FILE, Artifact
from pipeline.toolchains import environments, llama_cpp
from tests.support.families import FAMILIES

COMPUTE = Compute(threads=2)
FP32 = Onnx(backend="onnx", exporter="optimum", precision="fp32")
INT8 = Onnx(backend="onnx", exporter="optimum", precision="int8")
SLOTS = 4


class Case(NamedTuple):
    """A checkpoint, its two artifacts, and what plain transformers makes of a window."""

    checkpoint: Path
    artifacts: Mapping[str, Path]
    ids: Ids
    logits: Logits


@pytest.fixture(scope="module")
def falcon(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make("falcon", [FP32], tmp_path_factory.mktemp("falcon"))


@pytest.fixture(scope="module")
def gpt_2(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make("gpt-2", [FP32, INT8], tmp_path_factory.mktemp("gpt-2"))


@pytest.fixture(params=["falcon", "gpt_2"])
def case(request: pytest.FixtureRequest) -> Case:
    return cast(Case, request.getfixturevalue(request.param))


def make(name: str, recipes: Sequence[Onnx], folder: Path) -> Case:
    try:
        vocabularies = llama_cpp.find().vocabularies
    except RequirementError as error:
        pytest.skip(str(error))
    FAMILIES[name].make(folder / "checkpoint", vocabularies)
    tokenizer = hf_tokenizer.load(folder / "checkpoint")
    ids = np.array(tokenizer.encode(pydoc_data.topics.topics["with"], add_special_tokens=False), np.int32)[:200]
    model: Any = cast(Any, AutoModelForCausalLM).from_pretrained(folder / "checkpoint", dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(ids[None, :-1].astype(np.int64))).logits[0].numpy()
    artifacts: dict[str, Path] = {
        one.precision: build(one, folder / "checkpoint", folder / one.precision) for one in recipes
    }
    return Case(folder / "checkpoint", artifacts, ids, logits)


def build(recipe: Onnx, checkpoint: Path, out: Path) -> Path:
    out.mkdir(parents=True)
    recipe.build(checkpoint, out, out, COMPUTE)
    record = Artifact(name="it", recipe=recipe.model_dump(), checkpoint="", calibration="", digest="")
    record.save(out / FILE)
    return out


def score(runner: Runner, ids: Ids) -> Logits:
    return np.concatenate([block.copy() for block in runner.logits(ids)])


def nll(logits: Logits, ids: Ids) -> float:
    exact = torch.from_numpy(logits.astype(np.float64))
    return float(torch.nn.functional.cross_entropy(exact, torch.from_numpy(ids[1:].astype(np.int64))))


def test_fp32_scores_like_transformers(case: Case) -> None:
    with FP32.open(case.artifacts["fp32"], COMPUTE) as runner:
        found = score(runner, case.ids)
    assert found.dtype == np.float32
    assert nll(found, case.ids) == pytest.approx(nll(case.logits, case.ids), abs=1e-4)
    np.testing.assert_allclose(found, case.logits, atol=1e-3)


def test_int8_is_near(gpt_2: Case) -> None:
    expected = gpt_2.logits
    with INT8.open(gpt_2.artifacts["int8"], COMPUTE) as runner:
        found = score(runner, gpt_2.ids)
    share = float(np.sqrt(np.square(found - expected).mean() / np.square(expected - expected.mean()).mean()))
    assert 1e-4 < share < 0.2


@pytest.mark.parametrize("recipe", [FP32, INT8], ids=lambda recipe: recipe.precision)
def test_artifact_passes_the_structural_checks(recipe: Onnx, gpt_2: Case) -> None:
    texts = [pydoc_data.topics.topics["attribute-access"], "naïve 日本 😀\n\n\tif  x:", "<|endoftext|>again"]
    vocabulary = hf_tokenizer.vocabulary(hf_tokenizer.load(gpt_2.checkpoint), texts)
    with recipe.inspect(gpt_2.artifacts[recipe.precision], gpt_2.checkpoint) as contents:
        assert checks.problems(contents, vocabulary) == []


def test_collapsed_weights_are_seen(gpt_2: Case, tmp_path: Path) -> None:
    broken = shutil.copytree(gpt_2.artifacts["int8"], tmp_path / "broken")
    data = broken / "model.onnx.data"
    data.write_bytes(bytes(data.stat().st_size))
    with INT8.inspect(broken, gpt_2.checkpoint) as contents:
        problems = checks.problems(contents, hf_tokenizer.vocabulary(hf_tokenizer.load(gpt_2.checkpoint), []))
    assert any("MatMul" in problem and "collapsed" in problem for problem in problems)


def test_two_builds_give_the_same_bytes(gpt_2: Case, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(gpt_2.checkpoint, tmp_path / "another-name")
    again = build(INT8, elsewhere, tmp_path / "artifacts" / "other")
    assert hashes(again) == hashes(gpt_2.artifacts["int8"])
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["other"]
    for path in again.iterdir():
        data = path.read_bytes()
        assert str(tmp_path).encode() not in data, path
        assert b"another-name" not in data, path
        assert path.stat().st_mode & 0o444 == 0o444, path


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_graph_that_computes_something_else_is_refused(gpt_2: Case, tmp_path: Path) -> None:
    """As where the exporter's transformers reads a key of config.json otherwise than that of the reference."""
    other = shutil.copytree(gpt_2.checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"activation_function": "relu"}))
    graph = gpt_2.artifacts["fp32"] / "model.onnx"
    optimum.prove(gpt_2.checkpoint, graph, COMPUTE)
    with pytest.raises(BuildError, match="computes something else"):
        optimum.prove(other, graph, COMPUTE)


def test_blocks_and_continuations_are_those_of_one_pass(gpt_2: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = gpt_2.ids
    monkeypatch.setattr("pipeline.backends.onnx.run.BLOCK_BYTES", 60 * 4 * gpt_2.logits.shape[1])
    with FP32.open(gpt_2.artifacts["fp32"], COMPUTE) as runner:
        blocks = [block.copy() for block in runner.logits(ids)]
        prompts = [(ids[:90], [ids[90:100], ids[90:91], ids[5:9]]), (ids[:3], [ids[3:80]])]
        first, second, _, last = (rows.copy() for rows in runner.continuations(prompts))
    assert [len(block) for block in blocks] == [60, 60, 60, 19]
    np.testing.assert_allclose(np.concatenate(blocks), gpt_2.logits, atol=1e-3)
    np.testing.assert_allclose(first, gpt_2.logits[89:99], atol=1e-3)
    np.testing.assert_allclose(second, gpt_2.logits[89:90], atol=1e-3)
    np.testing.assert_allclose(last, gpt_2.logits[2:79], atol=1e-3)


def test_slots_know_nothing_of_each_other(case: Case) -> None:
    """Sequences join and leave in every order, and are put together anew meanwhile."""
    random = np.random.default_rng(0)
    with FP32.open(case.artifacts["fp32"], COMPUTE) as runner:
        assert isinstance(runner, OnnxRunner)
        assert isinstance(runner.decoder, GrowingDecoder)
        slots = GrowingSlots(runner.decoder, SLOTS)
        sequences: dict[int, list[int]] = {}
        for _ in range(40):
            free = [slot for slot in range(SLOTS) if slot not in sequences]
            if free and random.random() < 0.4:
                slot = int(random.choice(free))
                sequences[slot] = random.integers(4, 900, random.integers(1, 60)).tolist()
                at = len(sequences[slot]) // 2
                parts = [part for part in (sequences[slot][:at], sequences[slot][at:]) if part]
                rows = {slot: [slots.feed(slot, np.array(part, np.int32)) for part in parts][-1]}
            elif sequences:
                chosen = random.permutation(sorted(sequences))[: random.integers(1, SLOTS + 1)].tolist()
                ids = random.integers(4, 900, len(chosen)).tolist()
                rows = dict(zip(chosen, slots.step(chosen, ids), strict=True))
                for slot, id_ in zip(chosen, ids, strict=True):
                    sequences[slot].append(id_)
            else:
                continue
            for slot, row in rows.items():
                alone = score(runner, np.array([*sequences[slot], 0], np.int32))[-1]
                np.testing.assert_allclose(row, alone, atol=1e-3)
            if sequences and random.random() < 0.1:
                slot = int(random.choice(sorted(sequences)))
                slots.clear(slot)
                del sequences[slot]


def test_the_engine_serves_what_evaluation_generates(gpt_2: Case) -> None:
    """Five requests on four slots, one of which is cancelled: they join and leave while others go on."""
    artifact, ids = gpt_2.artifacts["fp32"], gpt_2.ids
    prompts, lengths = [ids[:20], ids[5:95], ids[40:43], ids[100:130]], (40, 7, 25, 30)
    with FP32.open(artifact, COMPUTE) as runner:
        expected = [list(runner.generate(prompt, count)) for prompt, count in zip(prompts, lengths, strict=True)]

    async def run() -> tuple[list[list[int]], str]:
        engine = PythonEngine(artifact, compute=COMPUTE, slots=SLOTS, context_tokens=256)
        facts = await engine.start()
        assert (facts.context_tokens, facts.eos_id, facts.vocabulary_size) == (256, 50256, 50257)
        try:
            streams = [take(engine, prompt, count, count) for prompt, count in zip(prompts, lengths, strict=True)]
            *made, cancelled = await asyncio.gather(*streams, take(engine, ids[:50], 200, 5))
            assert len(cancelled) == 5
            again = await engine.detokenize(await engine.tokenize("A statement", add_special=True))
        finally:
            await engine.stop()
        return made, again

    assert asyncio.run(asyncio.wait_for(run(), 120)) == (expected, "A statement")


async def take(engine: PythonEngine, prompt: Ids, tokens: int, most: int) -> list[int]:
    taken: list[int] = []
    sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)
    async with aclosing(engine.generate([int(id_) for id_ in prompt], sampling)) as stream:
        async for token in stream:
            taken.append(token.id)
            if len(taken) == most:
                break
    return taken


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model.onnx.data").unlink(), "model.onnx.data"),
        (lambda folder: (folder / "model.onnx").open("r+b").truncate(1000), "parsing failed"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
    ],
    ids=["no-data", "truncated-graph", "no-config", "broken-config"],
)
def test_damaged_artifact_is_refused(gpt_2: Case, tmp_path: Path, damage: Any, words: str) -> None:
    broken = shutil.copytree(gpt_2.artifacts["int8"], tmp_path / "broken")
    damage(broken)
    with pytest.raises(MeasurementError, match=words), INT8.open(broken, COMPUTE):
        pytest.fail("it loaded")


def test_the_committed_table_is_the_exporters_own() -> None:
    environment = environments.environment("optimum", optimum.REQUIREMENTS)
    found = environments.call(environment, optimum.SCRIPT, {}, what="Optimum's table", env=optimum.OFFLINE)
    assert found == architectures.tools().optimum


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["FalconForCausalLM"], "model_type": "falcon"}, None),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, None),
        ({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}, "does not know"),
        ({"architectures": ["BartForConditionalGeneration"], "model_type": "bart"}, "not a causal language model"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "quantization_config": {}}, None),
        (
            {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "quantization_config": {"quant_method": "x"}},
            "already quantized",
        ),
        (
            {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "rope_scaling": {"type": "longrope"}},
            "follow from the length",
        ),
    ],
)
def test_refusal(config: dict[str, Any], words: str | None) -> None:
    reason = FP32.refusal(config)
    assert reason is None if words is None else words in str(reason)


@pytest.mark.parametrize("options", [{"precision": "int4"}, {"precision": "int8", "block_size": 64}])
def test_options_without_effect_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="optimum"):
        Onnx(backend="onnx", exporter="optimum", **options)
