"""How well one artifact predicts the evaluation windows, and how much worse than the reference."""

from dataclasses import asdict

import numpy as np

from evals import memory, perplexity
from evals.windows import Windows
from pipeline import machine, paths
from pipeline.errors import MeasurementError
from pipeline.params import RECIPE, Params
from pipeline.progress import track
from pipeline.records import FILE, Artifact, Perplexities, Quality


def quality(params: Params, name: str) -> None:
    """Write measurements/quality/<name>.json."""
    folder = paths.artifact(name)
    artifact = Artifact.load(folder / FILE)
    if artifact.unavailable:
        unavailable = Quality(name=name, artifact=artifact.digest, unavailable=artifact.unavailable)
        unavailable.save(paths.quality(name))
        return
    windows = Windows.load(paths.CORPUS / "evaluation.npz")
    reference = np.load(paths.REFERENCE / "nll.npy")
    threads = params.threads or machine.usable_cores()
    before = memory.rss_bytes()
    with RECIPE.validate_python(artifact.recipe).open(folder, threads) as runner:
        try:
            nll = perplexity.score(runner, windows, lambda ids: track(ids, f"scoring {name}"))
        except ValueError as error:
            raise MeasurementError(f"quality {name}: {error}") from error
    ratio = perplexity.ratio(nll, reference, windows)
    Quality(
        name=name,
        artifact=artifact.digest,
        perplexity=Perplexities(**asdict(perplexity.summarize(nll, windows))),
        perplexity_ratio=ratio.value,
        perplexity_ratio_standard_error=ratio.standard_error,
        bytes=artifact.bytes,
        bits_per_weight=artifact.bits_per_weight,
        threads=threads,
        load_rss_bytes=before,
        peak_rss_bytes=memory.peak_rss_bytes(),
    ).save(paths.quality(name))
