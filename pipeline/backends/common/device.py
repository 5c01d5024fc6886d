"""torch set up for what a model runs on: the same numbers on every run, and no silent loss of precision."""

import os

import torch

from pipeline.backends.common import products
from pipeline.compute import Compute
from pipeline.errors import RequirementError


def prepare(compute: Compute) -> str:
    """Set torch up, and name the device that weights go to; a model uses one GPU. Call it before anything is computed.

    On CUDA: sums in float32 all the way (split products would be added in bfloat16), no TF32, no kernels whose result
    depends on timing, and attention through torch's own kernels, not those of whichever cuDNN is installed.
    RequirementError where torch was built for CPUs alone.
    """
    torch.set_num_threads(compute.threads)
    if compute.device == "cpu":
        products.widen()
        return "cpu"
    # cuBLAS reads it when it is first used; without it, its workspace and with it the result depend on timing.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not torch.cuda.is_available():
        raise RequirementError(
            f"torch {torch.__version__} cannot use the {compute.name} that is here; install a build of this version "
            "for CUDA that the driver supports, or set device: cpu in params.yaml, ASSAY_DEVICE=cpu for a gateway"
        )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it only finds bugs
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    return "cuda:0"


def name(device: torch.device) -> str:
    """Name a device as Runner.settings does: "cpu", or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
