"""One query a head, by another way through torch's kernels."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.backends.common.attention import sdpa


@pytest.mark.parametrize("shared", [1, 4], ids=["every head its own", "four heads share one"])
def test_one_token_attends_as_exactly_as_before(shared: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 4, 1, 16).bfloat16()
    key, value = (torch.randn(2, 4 // shared, 33, 16).bfloat16() for _ in range(2))
    output, _ = sdpa(SimpleNamespace(num_key_value_groups=shared), query, key, value, None, scaling=0.3)
    keys, values = (states.double().repeat_interleave(shared, dim=1) for states in (key, value))
    weights = torch.softmax(0.3 * query.double() @ keys.transpose(2, 3), dim=-1)
    assert output.shape == (2, 1, 4, 16)
    torch.testing.assert_close(output.double(), (weights @ values).transpose(1, 2), atol=0.02, rtol=0)
