"""Reading back and running what GPTQModel wrote: packed integers and scales in place of each linear layer's weight."""

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from evals.runner import Runner
from pipeline.backends.common import device, hf_tokenizer, packed_sizes, stored
from pipeline.backends.common.causal_lm import CausalLMRunner, quiet
from pipeline.backends.contract import Contents, Tensor
from pipeline.compute import Compute
from pipeline.errors import MeasurementError
from pipeline.sizing import read

PACKED = ("qweight", "qzeros")

SLACK = 0.02
"""Share by which bits per weight may differ from the shapes' sum: buffers that old checkpoints carry, biases."""


@contextlib.contextmanager
def inspect(
    artifact: Path, checkpoint: Path, *, bits: int, group_size: int, symmetric: bool, index: bool
) -> Iterator[Contents]:
    """Open an artifact for the structural checks; `index` says whether each input column's group is stored (GPTQ)."""
    model = read.folder(checkpoint)
    kept = [weight for weight in model.weights if not packed_sizes.dropped(weight, model)]
    bits_of = partial(packed_sizes.bits, bits=bits, group_size=group_size, index=index)
    expected = sum(map(bits_of, kept)) / model.parameters
    yield Contents(
        tensors=_tensors(artifact, symmetric=symmetric),
        bits_per_weight=8 * sum(tensor.bytes for tensor in stored.tensors(artifact)) / model.parameters,
        expected_bits_per_weight=(expected * (1 - SLACK), expected * (1 + SLACK)),
        tokenizer=hf_tokenizer.describe(artifact),
    )


def _tensors(artifact: Path, *, symmetric: bool) -> Iterator[Tensor]:
    """Yield what a fault would show in.

    Left out: g_idx, which numbers the groups, and symmetric zero points, which are one constant by design.
    """
    for path in stored.files(artifact):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping: it has no iterator)
                leaf = name.rpartition(".")[2]
                if leaf == "g_idx" or (leaf == "qzeros" and symmetric):
                    continue
                values, packed = file.get_tensor(name), leaf in PACKED
                yield Tensor(name=name, values=(values if packed else values.float()).numpy(), packed=packed)


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
    # transformers fills what it does not find with random numbers, and only logs it.
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in info[what]):
            raise MeasurementError(
                f"{artifact}: transformers reports {len(names)} {what.replace('_', ' ')}, {names[0]} the first; "
                "its weights do not fit the model that config.json describes"
            )
    yield CausalLMRunner(model)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
