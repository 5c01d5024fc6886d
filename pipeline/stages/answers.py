"""What the unquantized checkpoint makes of the tasks: each artifact's answers are compared with these."""

from pipeline import harness, paths
from pipeline.checkpoints import link
from pipeline.params import Params
from pipeline.records import FILE, Checkpoint, ReferenceAnswers


def answers(params: Params) -> None:
    """Write measurements/answers.json; without any task, a record without any answer."""
    checkpoint = Checkpoint.load(paths.CHECKPOINT / FILE)
    record = ReferenceAnswers(checkpoint=checkpoint.digest, dtype=checkpoint.dtype, limit=params.tasks.limit)
    if params.tasks.names:
        from pipeline.backends.common import causal_lm

        folder = link.ensure(checkpoint, params.checkpoint.source, paths.CHECKPOINT)
        runner = causal_lm.load(folder, checkpoint.dtype, params.compute())
        found = harness.run(runner, params.tasks, checkpoint, folder, "the reference")
        record = record.model_copy(update={"settings": dict(runner.settings), "tasks": found})
    record.save(paths.ANSWERS)
