"""What an artifact will take here, before it is built; and a refusal, with both numbers, of what cannot fit."""

import os
from pathlib import Path

from pipeline import paths
from pipeline.backends import AnyRecipe
from pipeline.engines import CONTEXT_TOKENS
from pipeline.errors import CapacityError
from pipeline.params import Params
from pipeline.records import Predicted
from pipeline.sizing import fit, hardware, read
from pipeline.sizing.estimate import Estimate, Load

FORCE = "ASSAY_FORCE"
"""Environment variable: build what is predicted not to fit."""


def predict(params: Params, recipe: AnyRecipe, checkpoint: Path) -> Estimate:
    """Size an artifact of a checked checkpoint for the load that the latency stage will put on it."""
    serving = params.serving
    load = Load(
        streams=max(serving.concurrency),
        context_tokens=CONTEXT_TOKENS,
        used_tokens=serving.prompt_tokens + serving.output_tokens,
        calibration_tokens=params.corpus.calibration.windows * params.corpus.window_tokens,
        gpus=bool(params.compute().gpus),
    )
    return recipe.estimate(read.folder(checkpoint), load)


def require_room(params: Params, name: str, estimate: Estimate) -> None:
    """Refuse what this machine's memory or disk cannot hold: the build, and serving, which the latency stage does.

    CapacityError with the numbers, unless ASSAY_FORCE or params.force says otherwise.
    """
    if params.force or os.environ.get(FORCE):
        return
    out = paths.artifact(name).parent
    out.mkdir(exist_ok=True)
    here = hardware.detect(out, gpus=params.device != "cpu", measure=False)
    problems = fit.build_problems(estimate, here) + fit.serving_problems(estimate, here)
    if problems:
        raise CapacityError(
            f"artifact {name} does not fit this machine: {'; '.join(problems)}\n"
            f"`assay plan --hardware NAME` names larger ones; {FORCE}=1, or force: true in params.yaml, builds it all "
            "the same"
        )


def record(estimate: Estimate) -> Predicted:
    """Keep what is later set beside measured figures."""
    serving = estimate.serving
    return Predicted(
        bytes=estimate.bytes,
        serving_bytes=None if serving.on_gpus else serving.bytes,
        serving_gpu_bytes=serving.bytes if serving.on_gpus else None,
        build_bytes=estimate.making.peak_bytes,
    )
