"""The GPTQ backend against the real GPTQModel: what it builds, reads back and scores."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTQConfig, LlamaConfig, LlamaForCausalLM

from pipeline import digests
from pipeline.backends.common import packed_linear
from pipeline.backends.common.causal_lm import CausalLMRunner
from pipeline.backends.gptq.backend import Gptq
from pipeline.backends.gptq.run import kernel
from pipeline.compute import Compute
from pipeline.errors import BuildError, MeasurementError
from tests.contract import packed
from tests.contract.packed import Case

pytest.importorskip("gptqmodel")

FOUR = Gptq(backend="gptq", bits=4)
EIGHT = Gptq(backend="gptq", bits=8)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return packed.case(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def four(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed.built(FOUR, case, tmp_path_factory)


@pytest.fixture(scope="module")
def eight(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gptq-8")
    EIGHT.build(case.checkpoint, case.corpus, out, Compute(threads=2))
    return out


def test_a_second_build_has_the_same_bytes(case: Case, four: Path, tmp_path: Path) -> None:
    """Under another name, so that nothing of the folder's own path is left in a file."""
    again = tmp_path / "of-another-name"
    again.mkdir()
    built = FOUR.build(case.checkpoint, case.corpus, again, Compute(threads=2))
    assert digests.list_files(again) == digests.list_files(four)
    assert built.notes == ()
    packed.assert_anonymous(again, tmp_path, case.checkpoint)


def test_four_bits_cost_little_and_are_scored_as_stored(case: Case, four: Path) -> None:
    """A broken packing costs nats; published 4-bit GPTQ costs a few hundredths, small models more."""
    with FOUR.open(four, Compute(threads=2)) as runner:
        measured = packed.nll(runner, case.evaluation)
        packed.assert_greedy(runner, case.evaluation.ids[0][:32], tolerance=0.1)
    assert -0.01 < measured - case.nll < 0.15
    exact = packed.nll(packed.float_model(case.checkpoint, packed.unpacked(four, 4, 128)), case.evaluation)
    # The kernel computes in bfloat16: unbiased noise that averages out over tokens, not a loss of its own.
    assert measured == pytest.approx(exact, abs=0.005)


def test_the_kernel_for_gpus_scores_alike(case: Case, four: Path) -> None:
    """It is plain torch, and runs here as it does there: eagerly."""
    settings = GPTQConfig(bits=4, backend=kernel(FOUR, Compute(threads=2, gpus=(packed.GPU,))))
    with torch.compiler.set_stance("force_eager"), packed_linear.runner(four, Compute(threads=2), settings) as runner:
        theirs = packed.nll(runner, case.evaluation)
    with FOUR.open(four, Compute(threads=2)) as runner:
        assert abs(theirs - packed.nll(runner, case.evaluation)) < 2e-3


def test_eight_bits_are_scored_as_stored(case: Case, eight: Path) -> None:
    """8 bits cost less than a hundredth. GPTQModel's own loader adds an error of its own by rounding the scales."""
    with EIGHT.open(eight, Compute(threads=2)) as runner:
        measured = packed.nll(runner, case.evaluation)
        packed.assert_greedy(runner, case.evaluation.ids[0][:32], tolerance=0.1)
    assert measured == pytest.approx(case.nll, abs=0.01)
    exact = packed.nll(packed.float_model(case.checkpoint, packed.unpacked(eight, 8, 128)), case.evaluation)
    assert measured == pytest.approx(exact, abs=0.003)


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"bits": 3}, 0.3),
        ({"bits": 2, "group_size": 32}, 1.5),
        ({"bits": 4, "group_size": -1}, 0.15),
        ({"bits": 4, "activation_order": True}, 0.1),
    ],
    ids=["3 bits", "2 bits", "a group a row", "activation order"],
)
def test_less_usual_recipes(case: Case, tmp_path: Path, options: dict[str, Any], most: float) -> None:
    """Each must pass the structural checks and lose about what its width costs, in nats a token."""
    recipe = Gptq.model_validate({"backend": "gptq", **options})
    recipe.build(case.checkpoint, case.corpus, tmp_path, Compute(threads=2))
    with recipe.inspect(tmp_path, case.checkpoint) as contents:
        low, high = contents.expected_bits_per_weight
        assert low < contents.bits_per_weight < high
    with recipe.open(tmp_path, Compute(threads=2)) as runner:
        assert -0.01 < packed.nll(runner, case.evaluation) - case.nll < most


def test_loads_untouched_in_transformers(case: Case, four: Path) -> None:
    ids = case.evaluation.ids[0]
    plain = CausalLMRunner(AutoModelForCausalLM.from_pretrained(four))
    with FOUR.open(four, Compute(threads=2)) as runner:
        np.testing.assert_allclose(packed.logits(runner, ids), packed.logits(plain, ids), atol=0.2)


def test_keeps_what_is_not_quantized(case: Case, four: Path) -> None:
    """Embeddings, head and norms stay bit for bit in the checkpoint's own type."""
    source = {
        name: tensor
        for path in sorted(case.checkpoint.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    kept = {name: tensor for name, tensor in load_file(four / "model.safetensors").items() if name in source}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= set(kept)
    for name, tensor in kept.items():
        assert tensor.dtype == source[name].dtype
        assert torch.equal(tensor, source[name]), name


def test_carries_the_checkpoints_files(case: Case, four: Path) -> None:
    names = [name for name in packed.CARRIED if (case.checkpoint / name).exists()]
    assert names
    for name in names:
        assert (four / name).read_bytes() == (case.checkpoint / name).read_bytes()
    settings = packed.settings(four)
    expected = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "lm_head": False}
    assert {key: settings[key] for key in expected} == expected


def test_inspection(case: Case, four: Path, eight: Path) -> None:
    with FOUR.inspect(four, case.checkpoint) as contents:
        tensors = list(contents.tensors)
        low, high = contents.expected_bits_per_weight
        assert low < contents.bits_per_weight < high
        assert contents.tokenizer.special_ids["bos"] == int(case.evaluation.ids[0, 0])
    assert {tensor.name.rpartition(".")[2] for tensor in tensors} == {"qweight", "scales", "weight"}
    assert all(tensor.packed == tensor.name.endswith("qweight") for tensor in tensors)
    with FOUR.inspect(eight, case.checkpoint) as contents:
        assert not low < contents.bits_per_weight < high


def test_a_truncated_file_is_a_measurement_error(four: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "truncated"
    shutil.copytree(four, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(MeasurementError, match="truncated"), FOUR.open(damaged, Compute(threads=1)):
        pass


def test_a_missing_tensor_is_a_measurement_error(four: Path, tmp_path: Path) -> None:
    """transformers would fill it with random numbers and go on."""
    damaged = tmp_path / "incomplete"
    shutil.copytree(four, damaged)
    tensors = load_file(damaged / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.scales"]
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MeasurementError, match="up_proj"), FOUR.open(damaged, Compute(threads=1)):
        pass


def test_a_failing_child_is_a_build_error(case: Case, tmp_path: Path) -> None:
    """What GPTQModel's process said last must reach the user."""
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(
        BuildError, match=r"GPTQ 4-bit: GPTQModel exited with 1(.|\n)*FileNotFoundError.*calibration.npz"
    ):
        FOUR.build(case.checkpoint, tmp_path, out, Compute(threads=2))


def test_shapes_that_cannot_be_packed_are_refused_at_once(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=96, intermediate_size=128, num_hidden_layers=1, num_attention_heads=3, num_key_value_heads=3,
        vocab_size=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(BuildError, match=r"96 inputs; expected multiples of 32 and 128. Group_size 32 or -1"):
        FOUR.build(tmp_path / "checkpoint", tmp_path / "no-corpus", tmp_path / "out", Compute(threads=2))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "rwkv"}, "no definition"),
        ({"model_type": "phi3"}, "gate_up_proj"),
        ({"model_type": "falcon"}, "linear class of its own"),
        ({"model_type": "qwen3_moe", "num_experts": 4}, "mixture of experts"),
        ({"hidden_size": 192}, "hidden_size is 192"),
        ({"head_dim": 80}, "head_dim x num_attention_heads is 320"),
        ({"vision_config": {}}, "only text"),
    ],
)
def test_refusals(changes: dict[str, Any], reason: str) -> None:
    config = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    assert FOUR.refusal(config) is None
    refusal = FOUR.refusal({**config, **changes})
    assert refusal is not None
    assert reason in refusal
