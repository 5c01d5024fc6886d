"""GPTQModel at work, in a process of its own: `python -m pipeline.backends.common.gptqmodel_child JOB`.

A process of its own, because GPTQModel ends its process with os._exit when one of its worker threads fails, patches
torch and transformers, and draws its tables and bars on stdout. Here all of that is contained, and being killed for
want of memory becomes a message too. Lines that begin with REPORT are for the parent; all others are noise until it
fails.
"""

import os
import sys
import threading
from pathlib import Path
from typing import Any, Literal

from evals.windows import Windows
from pipeline.compute import Device
from pipeline.records import Record

REPORT = "\x1elayers "
"""Followed by `done of all`. The record separator never occurs in what the libraries print."""


class Job(Record):
    """One quantization, as the child gets it on its command line."""

    method: Literal["gptq", "awq"]
    bits: int
    group_size: int
    symmetric: bool
    activation_order: bool = False
    damping: float | None = None
    dtype: Literal["bfloat16", "float16"]
    """What everything that is not quantized is kept in; the packing formats know these two."""
    checkpoint: str
    windows: str
    out: str
    device: Device


def main() -> None:
    """Quantize and save into `job.out`, GPTQModel's own way."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = Job.model_validate_json(sys.argv[1])

    import torch
    from gptqmodel import BACKEND, GPTQModel

    from pipeline.backends.common import awq_search, products

    torch.manual_seed(0)
    products.widen()
    awq_search.replace()
    model = GPTQModel.load(job.checkpoint, _config(job), dtype=getattr(torch, job.dtype))
    _report_layers(model)
    model.quantize(
        [{"input_ids": row, "attention_mask": [1] * len(row)} for row in Windows.load(Path(job.windows)).ids.tolist()],
        batch_size=1,
        calibration_sort=None,
        # The automatic choice for AWQ is a CUDA kernel that is compiled on first use.
        backend=BACKEND.GPTQ_TORCH if job.method == "gptq" else BACKEND.AWQ_TORCH,
    )
    model.save(job.out)


def _config(job: Job) -> Any:
    from gptqmodel import QuantizeConfig

    # In memory, not offloaded: the offloading path cannot load tied embeddings.
    common = {"bits": job.bits, "group_size": job.group_size, "sym": job.symmetric, "offload_to_disk": False}
    # The model stays in main memory; its layers go to the device one after the other.
    place = {"device": job.device}
    if job.method == "awq":
        return QuantizeConfig(**common, **place, method="awq", format="gemm")
    return QuantizeConfig(
        **common,
        **place,
        method="gptq",
        desc_act=job.activation_order,
        # Reorders whole groups only: needs groups, and excludes activation order.
        act_group_aware=job.group_size > 0 and not job.activation_order,
        damp_percent=job.damping,
    )


def _report_layers(model: Any) -> None:
    layers = model.model.config.get_text_config().num_hidden_layers
    done: set[int] = set()

    def report() -> None:
        print(f"\n{REPORT}{len(done)} of {layers}", flush=True)  # noqa: T201 (the way to the parent)

    def layer_complete(*, layer_idx: int, submodule_finalized: bool) -> None:  # GPTQModel's names; told twice a layer
        if layer_idx not in done:
            done.add(layer_idx)
            report()

    report()
    model.layer_callback = layer_complete


def _end_with_parent() -> None:
    """Stop when the parent is gone, however it went: nobody would want what is written from then on."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
