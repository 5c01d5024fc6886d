"""What the unquantized checkpoint makes of the tasks: each artifact's answers are compared with these."""

from pipeline import harness, paths
from pipeline.checkpoints import link
from pipeline.params import Params
from pipeline.records import FILE, Checkpoint, ReferenceAnswers


def answers(params: Params) -> None:
    """Write measurements/answers.json; without any task that can be asked, a record without any answer."""
    checkpoint = Checkpoint.load(paths.CHECKPOINT / FILE)
    missing = harness.impossible(params.tasks)
    record = ReferenceAnswers(
        checkpoint=checkpoint.digest, dtype=checkpoint.dtype, limit=params.tasks.limit, impossible=missing
    )
    if set(params.tasks.names) - missing.keys():
        from pipeline.backends.common import causal_lm

        folder = link.ensure(checkpoint, params.checkpoint.source, paths.CHECKPOINT)
        runner = causal_lm.load(folder, checkpoint.dtype, params.compute())
        found = harness.run(runner, params.tasks, checkpoint, folder, "the reference")
        update = {"settings": dict(runner.settings), "tasks": found.answers, "impossible": found.impossible}
        record = record.model_copy(update=update)
    record.save(paths.ANSWERS)
