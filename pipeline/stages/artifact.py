"""One artifact: built, read back, checked, recorded."""

import json
import time
from pathlib import Path

from evals import gpu_memory, memory
from pipeline import activity, digests, outputs, paths
from pipeline.backends import AnyRecipe
from pipeline.backends.common import checks, hf_tokenizer
from pipeline.backends.contract import Built
from pipeline.checkpoints import link
from pipeline.errors import BuildError, RequirementError
from pipeline.params import Params
from pipeline.records import FILE, Artifact, Build, Checkpoint, Failure, Vocabulary
from pipeline.stages import hardware, prediction


def artifact(params: Params, name: str) -> None:
    """Fill artifacts/<name>/ and write measurements/build/<name>.json.

    An artifact that cannot exist for this checkpoint, or lacks hardware, gets a record that says why. A missing tool is
    an error that stops the run. Where the artifact is too large for this machine or its build goes wrong, the error
    becomes a row (stages/failure.py).
    """
    recipe = params.artifacts[name]
    checkpoint = Checkpoint.load(paths.CHECKPOINT / FILE)
    original = link.ensure(checkpoint, params.checkpoint.source, paths.CHECKPOINT)
    source = _source(recipe)
    folder = original if source is None else Path(recipe.source)
    identity = _identity(name, recipe, checkpoint, source)
    if reason := _obstacle(recipe, source, folder) or hardware.lacking(name):
        _without(identity, reason, source.failure if source else None)
        return
    _require(recipe, name)
    foretold = prediction.predict(params, recipe, original)
    prediction.require_room(params, name, foretold)
    compute = params.compute()
    start = time.perf_counter()
    activity.note(f"building {name}")
    with outputs.folder(paths.artifact(name)) as out, gpu_memory.watch(compute.device == "cuda") as gpu:
        built = recipe.build(folder, paths.CORPUS, out, compute)
        activity.note(f"reading {name} back")
        record = _checked(recipe, built, identity, checkpoint, original, out)
        record.save(out / FILE)
    Build(
        artifact=record.digest,
        seconds=time.perf_counter() - start,
        peak_rss_bytes=max(memory.peak_rss_bytes(), memory.peak_child_rss_bytes()),
        device=compute.name,
        peak_gpu_bytes=gpu.bytes,
        tools=record.tools,
        notes=record.notes,
        predicted=prediction.record(foretold),
    ).save(paths.build(name))


def failed(params: Params, name: str, failure: Failure) -> None:
    """Write both outputs for an artifact whose build went wrong: they say so, and hold nothing else."""
    recipe = params.artifacts[name]
    identity = _identity(name, recipe, Checkpoint.load(paths.CHECKPOINT / FILE), _source(recipe))
    _without(identity, failure.words, failure)


def _source(recipe: AnyRecipe) -> Artifact | None:
    """Load the record of the artifact that a recipe starts from; None where that is the checkpoint."""
    return None if recipe.source == "checkpoint" else Artifact.load(Path(recipe.source) / FILE)


def _identity(name: str, recipe: AnyRecipe, checkpoint: Checkpoint, source: Artifact | None) -> Artifact:
    """Return the record as far as it is known before anything is built."""
    return Artifact(
        name=name,
        recipe=recipe.model_dump(),
        checkpoint=checkpoint.digest,
        source=source.digest if source is not None else None,
        calibration=digests.of_file(paths.CORPUS / "calibration.npz"),
        digest="",
    )


def _without(identity: Artifact, reason: str, failure: Failure | None) -> None:
    """Write the outputs of an artifact that there is none of."""
    update = {"unavailable": reason, "failure": failure, "digest": digests.of_value(reason)}
    record = identity.model_copy(update=update)
    with outputs.folder(paths.artifact(identity.name)) as out:
        record.save(out / FILE)
    Build(artifact=record.digest, seconds=None, peak_rss_bytes=None).save(paths.build(identity.name))


def _obstacle(recipe: AnyRecipe, source: Artifact | None, folder: Path) -> str | None:
    """Say why this artifact cannot be built on any machine, its source having been read; None where it can."""
    if source is not None:
        if source.unavailable is not None:
            reason = hardware.unavailable(source)
            return reason if source.failure else f"{recipe.source} is unavailable: {reason}"
        digests.check_files(folder, source.files)
    return recipe.refusal(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def _require(recipe: AnyRecipe, name: str) -> None:
    if missing := recipe.requirements():
        lacks = "\n".join(f"  {one.what}: {one.remedy}" for one in missing)
        raise RequirementError(f"artifact {name}: this machine lacks\n{lacks}")


def _checked(
    recipe: AnyRecipe, built: Built, identity: Artifact, checkpoint: Checkpoint, original: Path, out: Path
) -> Artifact:
    """Read what was built back, hold it against the original checkpoint, and complete its record."""
    vocabulary = _vocabulary(original)
    with recipe.inspect(out, original) as contents:
        found = checks.problems(contents, vocabulary)
        if found:
            listed = "\n".join(f"  {problem}" for problem in found)
            raise BuildError(f"artifact {identity.name} was built but is damaged:\n{listed}")
        agreement, differences = checks.chat_template_agreement(contents.tokenizer, vocabulary)
        bits_per_weight = contents.bits_per_weight
    files = digests.list_files(out)
    return identity.model_copy(
        update={
            "tools": built.tools,
            "notes": built.notes + differences,
            "parameters": checkpoint.parameters,
            "context_tokens": checkpoint.context_tokens,
            "bits_per_weight": bits_per_weight,
            "chat_template_agreement": agreement,
            "bytes": sum(file.bytes for file in files),
            "files": files,
            "digest": digests.of_files(files),
        }
    )


def _vocabulary(folder: Path) -> Vocabulary:
    """Load what the checkpoint's tokenizer does; a template that writes the date is rendered now, as when served."""
    vocabulary = Vocabulary.load(paths.CORPUS / "vocabulary.json")
    return hf_tokenizer.with_chats(vocabulary, hf_tokenizer.load(folder)) if vocabulary.reads_clock else vocabulary
