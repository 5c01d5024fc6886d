"""How well one artifact predicts the evaluation windows, and how far that is from what the reference predicts."""

import hashlib

import numpy as np
from threadpoolctl import threadpool_limits

from evals import agreement, divergence, gpu_memory, memory, perplexity
from evals.divergence import Comparison
from evals.perplexity import Nll
from evals.runner import Runner
from evals.scoring import score
from evals.statistics import exponential
from evals.tokens import Tokens
from evals.windows import Windows
from pipeline import activity, digests, paths
from pipeline.errors import MeasurementError
from pipeline.params import RECIPE, Params
from pipeline.progress import track
from pipeline.records import FILE, Artifact, Failure, Quality, Reference
from pipeline.stages import hardware


def quality(params: Params, name: str) -> None:
    """Write measurements/quality/<name>.json, and beside it <name>.npz with the figures of each token."""
    folder = paths.artifact(name)
    artifact = Artifact.load(folder / FILE)
    if reason := hardware.unavailable(artifact):
        _without(artifact, reason, artifact.failure)
        return
    digests.check_files(folder, artifact.files)
    compute = params.compute()
    activity.note(f"loading {name}")
    before = memory.rss_bytes()
    # One thread for numpy's products: more would wait for the runtime's own threads, which spin between their passes.
    one, on_gpu = threadpool_limits(1, user_api="blas"), gpu_memory.watch(compute.device == "cuda")
    with one, on_gpu as gpu, RECIPE.validate_python(artifact.recipe).open(folder, compute) as runner:
        try:
            record, tokens = _measure(params, name, artifact, runner)
        except ValueError as error:
            raise MeasurementError(f"quality {name}: {error}") from error
    update = {"load_rss_bytes": before, "peak_rss_bytes": memory.peak_rss_bytes(), "peak_gpu_bytes": gpu.bytes}
    record.model_copy(update=update).save(paths.quality(name))
    tokens.save(paths.tokens(name))


def failed(_: Params, name: str, failure: Failure) -> None:
    """Write both outputs for an artifact whose scoring went wrong: they say so, and hold no figures."""
    _without(Artifact.load(paths.artifact(name) / FILE), failure.words, failure)


def _without(artifact: Artifact, reason: str, failure: Failure | None) -> None:
    record = Quality(name=artifact.name, artifact=artifact.digest, unavailable=reason, failure=failure)
    record.save(paths.quality(artifact.name))
    Tokens.none().save(paths.tokens(artifact.name))


def _measure(params: Params, name: str, artifact: Artifact, runner: Runner) -> tuple[Quality, Tokens]:
    activity.note(f"scoring {name}")
    windows = Windows.load(paths.CORPUS / "evaluation.npz")
    reference = np.load(paths.REFERENCE / "nll.npy")
    comparison, again = Comparison(paths.REFERENCE), Comparison(paths.REFERENCE)
    nll = score(runner, windows, comparison.observe, lambda ids: track(ids, f"scoring {name}"))
    nll_again = score(runner, windows.first(1), again.observe)
    prompts = agreement.prompts(windows, params.greedy.prompts, params.greedy.prompt_tokens)
    greedy = agreement.continuations(
        runner, prompts, params.greedy.output_tokens, lambda ids: track(ids, f"continuing prompts with {name}")
    )
    log_ratio = perplexity.log_ratio(nll, reference, windows)
    original = Reference.load(paths.REFERENCE / FILE)
    tokens = Tokens(
        nll=nll.astype(np.float32),
        kld=comparison.kld.astype(np.float32),
        same=comparison.same,
        clusters=windows.clusters,
        greedy=greedy,
        margins=agreement.margins(runner, prompts, greedy),
        text=original.evaluation,
        reference=original.checkpoint,
    )
    record = Quality(
        name=name,
        artifact=artifact.digest,
        windows=len(windows),
        perplexity=perplexity.summarize(nll, windows),
        log_perplexity_ratio=log_ratio,
        perplexity_ratio=exponential(log_ratio),
        divergence=divergence.summarize(comparison, nll, reference, windows),
        greedy=agreement.compare(greedy, np.load(paths.REFERENCE / "greedy.npy"), prompts),
        chat_template_agreement=artifact.chat_template_agreement,
        bytes=artifact.bytes,
        bits_per_weight=artifact.bits_per_weight,
        settings=dict(runner.settings),
        repeats_to_the_bit=_bits(nll_again, again.kld[:1]) == _bits(nll[:1], comparison.kld[:1]),
        scores=hashlib.sha256(_bits(nll, comparison.kld)).hexdigest(),
    )
    return record, tokens


def _bits(nll: Nll, kld: Nll) -> bytes:
    return nll.tobytes() + kld.tobytes()
