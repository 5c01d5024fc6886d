"""The tasks of params.yaml, asked of one loaded model."""

from pathlib import Path

from evals import harness
from evals.answers import Answers
from evals.runner import Runner
from pipeline import paths
from pipeline.backends.common import hf_tokenizer
from pipeline.errors import HubError, MeasurementError
from pipeline.params import TasksParams
from pipeline.progress import track
from pipeline.records import Checkpoint


def run(runner: Runner, wanted: TasksParams, checkpoint: Checkpoint, folder: Path, who: str) -> dict[str, Answers]:
    """Return the answers by task, in lm-eval's order. `folder` holds the checkpoint, whose tokenizer makes the ids.

    Raises MeasurementError with lm-eval's own reason, and for a cloze without items; HubError for data out of reach.
    """
    if "cloze" in wanted.names and not paths.CLOZE.stat().st_size:
        raise MeasurementError(
            f"{paths.CLOZE}: the evaluation text has too few sentences for items; take cloze out of tasks.names"
        )
    try:
        return harness.run(
            runner,
            hf_tokenizer.load(folder),
            wanted.names,
            context_tokens=checkpoint.context_tokens,
            cache=paths.DATASETS,
            limit=wanted.limit,
            track=lambda items: track(items, f"tasks: {who}"),
        )
    except ConnectionError as error:
        raise HubError(
            f"tasks, {who}: {error}; stock tasks fetch their data from the Hub: check the network, or take them out of "
            "tasks.names"
        ) from error
    except ValueError as error:
        raise MeasurementError(f"tasks, {who}: {error}") from error
