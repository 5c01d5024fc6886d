"""AWQ's searches beside those of GPTQModel: bounds at which to clip, and the text that scales are searched on."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.backends.common import awq_search

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
    ours = awq_search.best_bounds(processor, weight, activations)
    assert ours.shape == theirs.shape
    assert torch.isclose(ours, theirs).float().mean() > 0.99, "sums in another order turn over near ties alone"
    largest = weight.reshape(len(weight), theirs.shape[1], -1).abs().amax(dim=-1, keepdim=True)
    assert 0.1 < (theirs < largest).float().mean() < 1, "some are clipped, and some are not"


@pytest.mark.parametrize(("symmetric", "group_size"), [(False, 128)])
def test_weights_in_bfloat16_give_bounds_in_bfloat16(processor: Any) -> None:
    torch.manual_seed(0)
    weight, activations = torch.randn(96, 256).bfloat16(), torch.randn(100, 256).bfloat16()
    bounds = awq_search.best_bounds(processor, weight, activations)
    assert (bounds.shape, bounds.dtype) == ((96, 2, 1), torch.bfloat16)


def test_scales_are_searched_on_windows_evenly_spread() -> None:
    """So are positions and masks that have a row for each window; what all windows share stays."""
    inputs = torch.arange(128).reshape(128, 1, 1).expand(128, 512, 4).float()
    shared = (torch.zeros(1, 512, 8), torch.zeros(1, 512, 8))
    others = {"position_ids": torch.arange(128 * 512).reshape(128, 512), "position_embeddings": shared, "mask": None}
    found, kept = awq_search.spread(inputs, others)
    assert found[:, 0, 0].tolist() == list(range(0, 128, 4))
    assert found.shape[:2].numel() == awq_search.SEARCH_TOKENS
    assert kept["position_ids"].shape == (32, 512)
    assert kept["position_embeddings"] == shared
    assert kept["mask"] is None


@pytest.mark.parametrize("shape", [(24, 128, 4), (1, 65_536, 4), (65_536, 4), (3, 16_000, 4)])
def test_little_text_and_packed_text_is_searched_whole(shape: tuple[int, ...]) -> None:
    inputs = torch.zeros(shape)
    found, kept = awq_search.spread(inputs, {"mask": torch.ones(shape[:2])})
    if shape[0] == 3:
        assert found.shape == (2, 16_000, 4), "at least as many tokens as asked for"
        assert kept["mask"].shape == (2, 16_000)
    else:
        assert found.shape == inputs.shape
        assert kept["mask"].shape == shape[:2]
