"""Products of 16-bit floats in float32, on processors that have no instructions for them.

There torch multiplies 16-bit floats by plain or emulating code, which adds up in float32 as well: 512 rows by a matrix
of 256 x 768 took 26 ms on one core of an AMD Zen 3, and 3 ms in float32; on one of an Intel Ice Lake, which has AVX-512
without its instructions for bfloat16, 6.1 and 1.4 ms.
"""

import torch

SIXTEEN_BITS = (torch.bfloat16, torch.float16)

WITHOUT = ("AVX2", "AVX512")
"""What torch calls processors whose instructions for 16-bit floats are extensions that some have."""

ROWS = 32
"""From so many on. Widening a matrix costs as much as multiplying it by this many rows: of 4096 x 4096, by 32 rows took
53 ms plainly and 66 ms in float32, by 128 rows 213 and 93 ms, by one 3 and 44 ms. Small matrices gain earlier."""

_linear, _matmul = torch.nn.functional.linear, torch.matmul
_widened: set[torch.dtype] = set()


def widen() -> None:
    """Let layers of 16-bit floats on the CPU multiply in float32, and round what comes out, from now on.

    Nothing changes on processors that multiply 16-bit floats themselves.
    """
    _widened.update(slow())
    if _widened:
        torch.nn.functional.linear = linear
        torch.matmul = matmul  # of GPTQModel's kernel that unpacks


def slow() -> frozenset[torch.dtype]:
    """Return the 16-bit floats that this processor has no instructions for."""
    if torch.backends.cpu.get_cpu_capability() not in WITHOUT:
        return frozenset()
    native = {torch.bfloat16: torch.cpu._is_avx512_bf16_supported(), torch.float16: has_float16()}
    return frozenset(dtype for dtype in SIXTEEN_BITS if not native[dtype])


def has_float16() -> bool:
    """Tell whether the processor multiplies float16 itself."""
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def linear(  # torch's own names
    input: torch.Tensor,  # noqa: A002
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """See torch.nn.functional.linear."""
    if not _gains(input, weight):
        return _linear(input, weight, bias)
    return _linear(input.float(), weight.float(), None if bias is None else bias.float()).to(input.dtype)


def matmul(input: torch.Tensor, other: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:  # noqa: A002
    """See torch.matmul."""
    if out is not None or not _gains(input, other):
        return _matmul(input, other, out=out)
    return _matmul(input.float(), other.float()).to(input.dtype)


def _gains(rows: torch.Tensor, matrix: torch.Tensor) -> bool:
    """Tell whether it is one matrix of floats to be widened on the CPU, times enough rows."""
    kinds = rows.dtype == matrix.dtype and rows.dtype in _widened and rows.device.type == "cpu"
    return kinds and matrix.dim() == 2 and rows.dim() > 1 and rows.numel() // max(1, rows.shape[-1]) >= ROWS
