"""The tasks of params.yaml, asked of one loaded model."""

from pathlib import Path

from evals import harness
from evals.answers import Asked
from evals.runner import Runner
from pipeline import paths
from pipeline.backends.common import hf_tokenizer
from pipeline.errors import HubError, MeasurementError
from pipeline.params import TasksParams
from pipeline.progress import track
from pipeline.records import Checkpoint

NO_CLOZE = (
    "the evaluation text gives no items: they are made of paragraphs of sentences, of words with spaces between them, "
    "that end in a plain word and a full stop"
)


def impossible(wanted: TasksParams) -> dict[str, str]:
    """Say which of the tasks the evaluation text does not give, and why; this needs no model."""
    return {"cloze": NO_CLOZE} if "cloze" in wanted.names and not paths.CLOZE.stat().st_size else {}


def _is_another(folder: Path, known: Path) -> bool:
    """Tell whether a folder is there and not the known one, as it is in Assay's own repository."""
    return folder.is_dir() and not folder.samefile(known)


def run(runner: Runner, wanted: TasksParams, checkpoint: Checkpoint, folder: Path, who: str) -> Asked:
    """Return the answers by task, in lm-eval's order. `folder` holds the checkpoint, whose tokenizer makes the ids.

    What no run with this checkpoint and text could answer is told by task. Raises MeasurementError with lm-eval's own
    reason; HubError for data out of reach, which is no such thing: it may be there tomorrow, and a record would keep
    that it was not.
    """
    missing = impossible(wanted)
    try:
        asked = harness.run(
            runner,
            hf_tokenizer.load(folder),
            [name for name in wanted.names if name not in missing],
            context_tokens=checkpoint.context_tokens,
            cache=paths.DATASETS,
            tasks=[harness.TASKS, *([paths.TASKS] if _is_another(paths.TASKS, harness.TASKS) else [])],
            limit=wanted.limit,
            track=lambda items: track(items, f"tasks: {who}"),
        )
    except ConnectionError as error:
        raise HubError(
            f"tasks, {who}: {error}; stock tasks fetch their data from the Hub: check the network, or take them out of "
            "tasks.names"
        ) from error
    except ValueError as error:
        raise MeasurementError(f"tasks, {who}: {error}; take it out of tasks.names") from error
    return Asked(answers=asked.answers, impossible={**missing, **asked.impossible})
