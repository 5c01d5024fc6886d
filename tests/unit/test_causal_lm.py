"""A transformers model in the situations where one forward pass does not say it all."""

import numpy as np
import pytest
import torch
from transformers import Lfm2Config, Lfm2ForCausalLM, LlamaConfig, LlamaForCausalLM

from pipeline.backends.common import causal_lm, device
from pipeline.backends.common.causal_lm import CausalLMRunner
from pipeline.compute import Compute
from pipeline.errors import RequirementError
from pipeline.records import Gpu


def test_convolutions_do_not_carry_one_continuation_into_the_next() -> None:
    """LFM2's convolutions see their neighbours in the sequence, whatever the mask says."""
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention", "conv", "full_attention"], initializer_range=0.3,
    )  # fmt: skip
    runner = CausalLMRunner(Lfm2ForCausalLM(config).float())
    random = np.random.default_rng(0)
    prompt, *several = (random.integers(3, 200, tokens, dtype=np.int32) for tokens in (20, 3, 5, 2))
    together = [logits.copy() for logits in runner.continuations([(prompt, several)])]
    for continuation, logits in zip(several, together, strict=True):
        alone = np.concatenate([block.copy() for block in runner.logits(np.concatenate([prompt, continuation]))])
        np.testing.assert_allclose(logits, alone[len(prompt) - 1 :], atol=1e-3)


def test_a_gpu_that_torch_cannot_use_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a build of torch for CPUs: the CPU would take hours, under the name of a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    gpu = Gpu(name="NVIDIA L4", compute_capability="8.9", memory_mib=23034, driver="570.10")
    with pytest.raises(RequirementError, match=r"torch .* cannot use the NVIDIA L4 that is here; install"):
        device.prepare(Compute(threads=torch.get_num_threads(), gpus=(gpu,)))


def test_generating_between_two_blocks_of_a_scoring_changes_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server does so. Scores come from a head of float32 products, tokens from the bfloat16 head."""
    monkeypatch.setattr(causal_lm, "BLOCK_BYTES", 4 * 200 * 6)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    runner = CausalLMRunner(LlamaForCausalLM(config).bfloat16())
    ids = np.random.default_rng(0).integers(3, 200, 20, dtype=np.int32)
    alone = [block.copy() for block in runner.logits(ids)]
    tokens = list(runner.generate(ids, 4))
    both = [(block.copy(), list(runner.generate(ids, 4))) for block in runner.logits(ids)]
    assert len(both) > 1
    np.testing.assert_array_equal(np.concatenate([block for block, _ in both]), np.concatenate(alone))
    assert all(made == tokens for _, made in both)
