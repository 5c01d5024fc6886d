"""What quantizing changes in torch on processors without instructions for 16-bit floats."""

import pytest
import torch

from pipeline.backends.common import gptqmodel_child


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_16_bit_floats_are_those_of_float32_rounded(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", plain)  # put back afterwards
    gptqmodel_child._multiply_in_float32()
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 40).to(dtype)
    rows = torch.randn(3, 7, 96).to(dtype)
    found = layer(rows)
    assert found.dtype == dtype
    assert torch.equal(found, plain(rows.float(), layer.weight.float(), layer.bias.float()).to(dtype))
    exact = rows.double() @ layer.weight.double().T + layer.bias.double()
    assert torch.allclose(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_products_of_float32_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", plain)
    gptqmodel_child._multiply_in_float32()
    rows, weight = torch.randn(5, 16), torch.randn(4, 16)
    assert torch.equal(torch.nn.functional.linear(rows, weight), plain(rows, weight))
