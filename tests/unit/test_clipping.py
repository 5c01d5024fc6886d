"""AWQ's clipping bounds beside those that GPTQModel finds."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.backends.common import clipping

awq_processor = pytest.importorskip("gptqmodel.looper.awq_processor")


@pytest.fixture
def processor(symmetric: bool, group_size: int) -> Any:
    theirs = awq_processor.AWQProcessor
    found = SimpleNamespace(qcfg=SimpleNamespace(group_size=group_size, bits=4, sym=symmetric))
    found._pseudo_quantize_tensor_into = lambda source, target: theirs._pseudo_quantize_tensor_into(
        found, source, target
    )
    return found


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, 128, -1])
@pytest.mark.parametrize("tokens", [40, 1500])
def test_the_bounds_are_those_that_gptqmodel_finds(processor: Any, tokens: int) -> None:
    """In float32, where theirs are exact; outliers among weights and channels make clipping worth something."""
    torch.manual_seed(0)
    weight = torch.randn(64, 256) ** 3
    activations = torch.randn(2, tokens // 2, 256) * torch.rand(256) ** 4
    theirs = awq_processor.AWQProcessor._compute_best_clip(processor, weight, activations)
    ours = clipping.best_bounds(processor, weight, activations)
    assert ours.shape == theirs.shape
    assert torch.isclose(ours, theirs).float().mean() > 0.99, "sums in another order turn over near ties alone"
    largest = weight.reshape(len(weight), theirs.shape[1], -1).abs().amax(dim=-1, keepdim=True)
    assert 0.1 < (theirs < largest).float().mean() < 1, "some are clipped, and some are not"


@pytest.mark.parametrize(("symmetric", "group_size"), [(False, 128)])
def test_weights_in_bfloat16_give_bounds_in_bfloat16(processor: Any) -> None:
    torch.manual_seed(0)
    weight, activations = torch.randn(96, 256).bfloat16(), torch.randn(100, 256).bfloat16()
    bounds = clipping.best_bounds(processor, weight, activations)
    assert (bounds.shape, bounds.dtype) == ((96, 2, 1), torch.bfloat16)
