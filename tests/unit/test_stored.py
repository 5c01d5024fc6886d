"""Tensors read out of safetensors files without torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.backends.common import stored

VALUES = torch.tensor([[0.0, -1.5, 3.140625], [65504.0, 1e-7, -0.0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8])
def test_values_are_those_that_torch_reads(tmp_path: Path, dtype: torch.dtype) -> None:
    integers = not dtype.is_floating_point
    wanted = (VALUES.abs().clamp(max=200) if integers else VALUES).to(dtype)
    path = tmp_path / "model.safetensors"
    save_file({"a.odd": torch.ones(3, dtype=torch.uint8), "b.weight": wanted}, path)
    (tensor,) = [entry for entry in stored.tensors(tmp_path) if entry.name == "b.weight"]
    expected = wanted.numpy() if integers else wanted.float().numpy()
    found = stored.values(path, tensor)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
