"""The reference: the checkpoint in its own dtype through transformers, scored on the evaluation windows."""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any, cast

import numpy as np

from evals import perplexity
from evals.windows import Windows
from pipeline import digests, machine, outputs, paths
from pipeline.checkpoints import link
from pipeline.errors import MeasurementError
from pipeline.params import Params
from pipeline.progress import track
from pipeline.records import FILE, Checkpoint, Perplexities, Reference


def reference(params: Params) -> None:
    """Fill reference/ with nll.npy (float64 [windows, tokens - 1], nats) and the record."""
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.backends.common.causal_lm import CausalLMRunner, quiet

    checkpoint = Checkpoint.load(paths.CHECKPOINT / FILE)
    windows = Windows.load(paths.CORPUS / "evaluation.npz")
    torch.set_num_threads(params.threads or machine.usable_cores())
    folder = link.ensure(checkpoint, params.checkpoint.source, paths.CHECKPOINT)
    # sdpa is pinned: kernels differ in the last bits, and the reference must not move with a library's default.
    with quiet():
        model = cast(Any, AutoModelForCausalLM).from_pretrained(
            folder, dtype=getattr(torch, checkpoint.dtype), attn_implementation="sdpa", local_files_only=True
        )
    try:
        nll = perplexity.score(CausalLMRunner(model), windows, lambda ids: track(ids, "scoring the reference"))
    except ValueError as error:
        raise MeasurementError(f"reference: {error}") from error
    with outputs.folder(paths.REFERENCE) as out:
        np.save(out / "nll.npy", nll)
        Reference(
            checkpoint=checkpoint.digest,
            evaluation=digests.of_file(paths.CORPUS / "evaluation.npz"),
            dtype=checkpoint.dtype,
            tools={name: version(name) for name in ("torch", "transformers")},
            quality=Perplexities(**asdict(perplexity.summarize(nll, windows))),
            digest=digests.of_file(out / "nll.npy"),
        ).save(out / FILE)
