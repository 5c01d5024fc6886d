"""Products of 16-bit floats on processors without instructions for them."""

import pytest
import torch

from pipeline.backends.common import products


@pytest.fixture
def widened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)  # put back afterwards
    monkeypatch.setattr(torch, "matmul", torch.matmul)
    monkeypatch.setattr(products, "_widened", set())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(products, "has_float16", lambda: False)
    products.widen()


@pytest.mark.usefixtures("widened")
@pytest.mark.parametrize("dtype", products.SIXTEEN_BITS)
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_products_of_16_bit_floats_are_those_of_float32_rounded(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 40).to(dtype)
    values = torch.randn(2, rows, 96).to(dtype)
    found = layer(values)
    assert found.dtype == dtype
    exact = values.double() @ layer.weight.double().T + layer.bias.double()
    assert torch.allclose(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    product = torch.matmul(values[0], layer.weight.T)
    assert product.dtype == dtype
    exact = values[0].double() @ layer.weight.double().T
    assert torch.allclose(product.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    if rows >= products.ROWS:
        assert torch.equal(product, (values[0].float() @ layer.weight.T.float()).to(dtype))


@pytest.mark.usefixtures("widened")
def test_products_of_float32_stay_as_they_are() -> None:
    values, weight = torch.randn(5, 16), torch.randn(4, 16)
    assert torch.equal(torch.nn.functional.linear(values, weight), values @ weight.T)
    assert torch.equal(torch.matmul(values, weight.T), values @ weight.T)


@pytest.mark.usefixtures("widened")
def test_products_of_many_matrices_and_of_vectors_stay_as_they_are() -> None:
    many, vector = torch.randn(4, 40, 16).bfloat16(), torch.randn(16).bfloat16()
    assert torch.equal(torch.matmul(many, many.mT), many @ many.mT)
    assert torch.equal(torch.matmul(many, vector), many @ vector)


@pytest.mark.parametrize(
    ("capability", "bfloat16", "float16", "slow"),
    [
        ("AVX2", False, False, {torch.bfloat16, torch.float16}),  # AMD Zen 3
        ("AVX512", False, False, {torch.bfloat16, torch.float16}),  # Intel Ice Lake
        ("AVX512", True, False, {torch.float16}),  # AMD Zen 4
        ("AVX512", True, True, set()),  # Intel Sapphire Rapids
        ("SVE256", False, False, set()),  # ARM, where torch has other ways
    ],
)
def test_what_a_processor_lacks_instructions_for_is_widened(
    monkeypatch: pytest.MonkeyPatch, capability: str, bfloat16: bool, float16: bool, slow: set[torch.dtype]
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(products, "has_float16", lambda: float16)
    assert products.slow() == slow


def test_a_processor_with_instructions_for_them_uses_these(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "slow", frozenset)
    monkeypatch.setattr(products, "_widened", set())
    monkeypatch.setattr(torch.nn.functional, "linear", products._linear)
    monkeypatch.setattr(torch, "matmul", products._matmul)
    products.widen()
    assert torch.nn.functional.linear is products._linear
    assert torch.matmul is products._matmul
