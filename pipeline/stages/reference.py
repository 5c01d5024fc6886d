"""The reference: the checkpoint in its own dtype through transformers, scored on the evaluation windows."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals import agreement, head, perplexity
from evals.perplexity import Nll
from evals.runner import Logits
from evals.scoring import Normalizer, score
from evals.windows import Windows
from pipeline import digests, outputs, paths
from pipeline.checkpoints import link
from pipeline.errors import MeasurementError
from pipeline.params import Params
from pipeline.progress import track
from pipeline.records import FILE, Checkpoint, Reference

if TYPE_CHECKING:
    from pipeline.backends.common.causal_lm import CausalLMRunner


def reference(params: Params) -> None:
    """Fill reference/: per-token NLL, distributions as hidden states and head, greedy continuations, the record."""
    from pipeline.backends.common import causal_lm

    checkpoint = Checkpoint.load(paths.CHECKPOINT / FILE)
    windows = Windows.load(paths.CORPUS / "evaluation.npz")
    folder = link.ensure(checkpoint, params.checkpoint.source, paths.CHECKPOINT)
    runner = causal_lm.load(folder, checkpoint.dtype, params.compute())
    with outputs.folder(paths.REFERENCE) as out:
        try:
            nll = _score(runner, windows, out / "hidden.npy")
            prompts = agreement.prompts(windows, params.greedy.prompts, params.greedy.prompt_tokens)
        except ValueError as error:
            raise MeasurementError(f"reference: {error}") from error
        np.save(out / "nll.npy", nll)
        head.save(out, *runner.head())
        greedy = agreement.continuations(
            runner, prompts, params.greedy.output_tokens, lambda ids: track(ids, "continuing prompts")
        )
        np.save(out / "greedy.npy", greedy)
        files = digests.list_files(out)
        Reference(
            checkpoint=checkpoint.digest,
            evaluation=digests.of_file(paths.CORPUS / "evaluation.npz"),
            dtype=checkpoint.dtype,
            settings=dict(runner.settings),
            perplexity=perplexity.summarize(nll, windows),
            files=files,
            digest=digests.of_files(files),
        ).save(out / FILE)


def _score(runner: "CausalLMRunner", windows: Windows, hidden: Path) -> Nll:
    """Score the windows, and write the hidden states that the logits came from."""
    shape = len(windows), windows.ids.shape[1] - 1, runner.hidden_size
    file: Any = np.lib.format.open_memmap(hidden, mode="w+", dtype=runner.hidden_dtype, shape=shape)  # type: ignore[no-untyped-call]

    def keep(window: int, row: int, logits: Logits, _: Normalizer) -> None:
        file[window, row : row + len(logits)] = runner.hidden()

    nll = score(runner, windows, keep, lambda ids: track(ids, "scoring the reference"))
    file.flush()
    return nll
