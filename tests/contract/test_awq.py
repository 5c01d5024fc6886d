"""The AWQ backend against the real GPTQModel: what it builds, reads back and scores."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from pipeline import digests
from pipeline.backends.awq.backend import Awq
from pipeline.backends.awq.run import settings
from pipeline.backends.common import packed_linear
from pipeline.backends.common.causal_lm import CausalLMRunner
from pipeline.compute import Compute
from pipeline.errors import MeasurementError
from tests.contract import packed
from tests.contract.packed import Case

pytest.importorskip("gptqmodel")

RECIPE = Awq(backend="awq", bits=4)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return packed.case(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def artifact(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed.built(RECIPE, case, tmp_path_factory)


def test_a_second_build_has_the_same_bytes(case: Case, artifact: Path, tmp_path: Path) -> None:
    again = tmp_path / "of-another-name"
    again.mkdir()
    built = RECIPE.build(case.checkpoint, case.corpus, again, Compute(threads=2))
    assert digests.list_files(again) == digests.list_files(artifact)
    # Grouped queries: v_proj is narrower than o_proj, so nothing can take up the scales of o_proj's input.
    assert [note.rpartition(": ")[2] for note in built.notes] == ["self_attn.o_proj"]
    packed.assert_anonymous(again, tmp_path, case.checkpoint)


def test_four_bits_cost_little_and_are_scored_as_stored(case: Case, artifact: Path) -> None:
    """A scale folded into the wrong norm costs nats; published AWQ costs a few hundredths, small models more."""
    with RECIPE.open(artifact, Compute(threads=2)) as runner:
        measured = packed.nll(runner, case.evaluation)
        packed.assert_greedy(runner, case.evaluation.ids[0][:32], tolerance=0.1)
    assert -0.01 < measured - case.nll < 0.15
    exact = packed.nll(packed.float_model(case.checkpoint, packed.unpacked(artifact, 4, 128)), case.evaluation)
    # The kernel computes in bfloat16: unbiased noise that averages out over tokens, not a loss of its own.
    assert measured == pytest.approx(exact, abs=0.005)


def test_the_kernel_for_gpus_scores_alike(case: Case, artifact: Path) -> None:
    """It is plain torch, and runs here as it does there."""
    on_gpu = settings(Compute(threads=2, gpus=(packed.GPU,)))
    with packed_linear.runner(artifact, Compute(threads=2), on_gpu) as runner:
        theirs = packed.nll(runner, case.evaluation)
    with RECIPE.open(artifact, Compute(threads=2)) as runner:
        assert abs(theirs - packed.nll(runner, case.evaluation)) < 2e-3


def test_loads_untouched_in_transformers(case: Case, artifact: Path) -> None:
    ids = case.evaluation.ids[0]
    plain = CausalLMRunner(AutoModelForCausalLM.from_pretrained(artifact))
    with RECIPE.open(artifact, Compute(threads=2)) as runner:
        np.testing.assert_allclose(packed.logits(runner, ids), packed.logits(plain, ids), atol=0.2)


def test_carries_the_checkpoints_files(case: Case, artifact: Path) -> None:
    names = [name for name in packed.CARRIED if (case.checkpoint / name).exists()]
    assert names
    for name in names:
        assert (artifact / name).read_bytes() == (case.checkpoint / name).read_bytes()
    settings = packed.settings(artifact)
    expected = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
    assert {key: settings[key] for key in expected} == expected


def test_inspection(case: Case, artifact: Path) -> None:
    """Asymmetric zero points say something, so they are among what is checked."""
    with RECIPE.inspect(artifact, case.checkpoint) as contents:
        leaves = {tensor.name.rpartition(".")[2]: tensor.packed for tensor in contents.tensors}
        low, high = contents.expected_bits_per_weight
        assert low < contents.bits_per_weight < high
    assert leaves == {"qweight": True, "qzeros": True, "scales": False, "weight": False}


def test_a_truncated_file_is_a_measurement_error(artifact: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "truncated"
    shutil.copytree(artifact, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(MeasurementError, match="truncated"), RECIPE.open(damaged, Compute(threads=1)):
        pass


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "olmo2", "phi3", "falcon", "rwkv"])
def test_refuses_families_whose_norms_stand_elsewhere(model_type: str) -> None:
    """gemma2 has a post_attention_layernorm that does not feed the MLP; folding into it breaks the model silently."""
    config = {"hidden_size": 256, "intermediate_size": 512}
    refusal = RECIPE.refusal({"model_type": model_type, **config})
    assert refusal is not None
    assert "granite, llama, mistral" in refusal
    assert RECIPE.refusal({"model_type": "llama", **config}) is None
