"""Running what GPTQModel wrote: packed integers and scales in place of each linear layer's weight."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM

from evals.runner import Runner
from pipeline.backends.common import device
from pipeline.backends.common.causal_lm import CausalLMRunner, require_whole
from pipeline.checkpoints.libraries import quiet
from pipeline.compute import Compute
from pipeline.errors import MeasurementError


@contextlib.contextmanager
def runner(artifact: Path, compute: Compute, settings: Any) -> Iterator[Runner]:
    """Load through transformers, the way the artifact is loaded anywhere else, with the kernel that `settings` names.

    Computes in bfloat16 whatever the stored dtype: it is what these kernels are fast in on a CPU. GPTQModel's own
    loader would also round the stored float16 scales to bfloat16: for an 8-bit artifact as great an error again. On a
    GPU transformers makes float16 of it for AWQ.

    The kernels for GPUs are plain torch: GPTQModel's faster ones are compiled on first use, where nvcc is there, and
    what serves GPUs, vLLM, has its own.
    """
    place = device.prepare(compute)
    if compute.device == "cuda":
        # Else the unpacking goes through Triton, directly or by torch.compile, which look for a C compiler.
        os.environ["GPTQ_TORCH_TRITON_DEQUANT"] = "0"
        torch.compiler.set_stance("force_eager")
    else:
        # The kernel that unpacks does so once, and not for each token: the same numbers, from a matrix in bfloat16 that
        # is kept beside the integers. GPTQModel reads this when it makes the layers.
        os.environ["GPTQ_TORCH_CACHE_WEIGHTS"] = "1"
    with quiet():
        try:
            model, info = cast(Any, AutoModelForCausalLM).from_pretrained(
                artifact,
                dtype=torch.bfloat16,
                quantization_config=settings,
                device_map=place,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # every library below raises its own kinds
            raise MeasurementError(f"{artifact}: cannot be loaded ({_first_line(error)}); build it again") from error
    require_whole(info, artifact)
    yield CausalLMRunner(model)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
