"""AWQ's search for the bound at which to clip each group of weights, by products of matrices.

GPTQModel multiplies every weight by every sampled activation, and adds up afterwards: in bfloat16 on a CPU that took as
long as all the rest. The error it looks for, the mean over tokens of ((quantized - original) @ activations)**2, is a
quadratic form of the activations' second moments: one square matrix a group, however many the tokens.
"""

from typing import Any

import torch


def replace() -> None:
    """Let GPTQModel search this way in this process, from now on."""
    from gptqmodel.looper.awq_processor import AWQProcessor

    AWQProcessor._compute_best_clip = best_bounds


@torch.inference_mode()
def best_bounds(
    processor: Any,
    weight: torch.Tensor,
    activations: torch.Tensor,
    n_grid: int = 20,
    max_shrink: float = 0.5,
    n_sample_token: int = 512,
) -> torch.Tensor:
    """Return each group's largest magnitude after clipping (outputs, groups, 1), of the tried ones the best.

    The arguments are those of GPTQModel's `AWQProcessor._compute_best_clip`, and so are the bounds that are tried: the
    largest weight's magnitude, less 0 to `max_shrink` of it in steps of 1 / `n_grid`. `weight` is (outputs, inputs) and
    `activations` (..., inputs); of these, `n_sample_token` tokens or up to twice as many are used, evenly spread.
    """
    size = processor.qcfg.group_size if processor.qcfg.group_size > 0 else weight.shape[1]
    groups = weight.reshape(len(weight), -1, size)
    rows = activations.reshape(-1, groups.shape[1], size)
    rows = rows[:: max(1, len(rows) // n_sample_token)].to(weight.device).float()
    moments = torch.einsum("tgi,tgj->gij", rows, rows)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    best, least = largest.clone(), torch.full_like(largest, torch.inf, dtype=torch.float32)
    quantized = torch.empty_like(groups)
    for step in range(int(max_shrink * n_grid)):
        bound = largest * (1 - step / n_grid)
        processor._pseudo_quantize_tensor_into(groups.clamp(-bound, bound), quantized)
        lost = (quantized.float() - groups.float()).transpose(0, 1)
        error = (torch.bmm(lost, moments) * lost).sum(dim=-1).T.unsqueeze(-1)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, bound, best)
    return best
