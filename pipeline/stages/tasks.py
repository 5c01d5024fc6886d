"""How one artifact answers lm-evaluation-harness's tasks, and how its answers differ from the reference's."""

from evals.answers import Answers, accuracy, compare
from pipeline import activity, digests, harness, paths
from pipeline.checkpoints import link
from pipeline.errors import MeasurementError
from pipeline.params import RECIPE, Params
from pipeline.records import FILE, Artifact, Checkpoint, Failure, ReferenceAnswers, TaskAnswers, Tasks
from pipeline.stages import hardware


def tasks(params: Params, name: str) -> None:
    """Write measurements/tasks/<name>.json."""
    folder = paths.artifact(name)
    artifact = Artifact.load(folder / FILE)
    reason = hardware.unavailable(artifact)
    missing = harness.impossible(params.tasks)
    record = Tasks(
        name=name,
        artifact=artifact.digest,
        unavailable=reason,
        failure=artifact.failure,
        limit=params.tasks.limit,
        impossible=missing,
    )
    if set(params.tasks.names) - missing.keys() and not reason:
        reference = ReferenceAnswers.load(paths.ANSWERS)
        checkpoint = Checkpoint.load(paths.CHECKPOINT / FILE)
        source = link.ensure(checkpoint, params.checkpoint.source, paths.CHECKPOINT)
        digests.check_files(folder, artifact.files)
        activity.note(f"loading {name}")
        with RECIPE.validate_python(artifact.recipe).open(folder, params.compute()) as runner:
            activity.note(f"answering tasks with {name}")
            found = harness.run(runner, params.tasks, checkpoint, source, name)
            settings = dict(runner.settings)
        try:
            compared = {task: _compared(answers, reference.tasks[task]) for task, answers in found.answers.items()}
        except (KeyError, ValueError) as error:
            raise MeasurementError(f"tasks {name}: {error}; run `dvc repro answers`") from error
        record = record.model_copy(update={"settings": settings, "tasks": compared, "impossible": found.impossible})
    record.save(paths.tasks(name))


def failed(params: Params, name: str, failure: Failure) -> None:
    """Write the output for an artifact that did not come to answer: it says so, and holds no answers."""
    artifact = Artifact.load(paths.artifact(name) / FILE)
    Tasks(
        name=name,
        artifact=artifact.digest,
        unavailable=failure.words,
        failure=failure,
        limit=params.tasks.limit,
    ).save(paths.tasks(name))


def _compared(ours: Answers, reference: Answers) -> TaskAnswers:
    changes = compare(ours.outcomes, reference.outcomes)
    return TaskAnswers(
        documents=len(ours.outcomes),
        accuracy=accuracy(ours.outcomes),
        flips=changes.flips,
        right_to_wrong=changes.right_to_wrong,
        wrong_to_right=changes.wrong_to_right,
        p_value=changes.p_value,
        answers=ours,
    )
