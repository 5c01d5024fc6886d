"""`assay export`: an artifact as other tools take it.

`folder` is the artifact as it is. `ollama` is one tree for the three tools that run GGUF files on a desk: Ollama reads
the Modelfile, LM Studio wants publisher/model/file.gguf, LocalAI a YAML file beside its models. The weights lie in it
once.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import yaml

from pipeline import digests, params, paths
from pipeline.backends.gguf.backend import Gguf
from pipeline.checkpoints import link
from pipeline.commands.modelfile import Prompting, modelfile
from pipeline.errors import ParamsError, SelectionError, StorageError
from pipeline.records import FILE, Artifact, Checkpoint, Selection, Vocabulary

PUBLISHER = "assay"
"""LM Studio's name for whoever made a file."""

CONTEXT_TOKENS = 8192
"""At most this much context is asked for: a KV cache for all that a model could read can be larger than the model."""


def export(form: Literal["ollama", "folder"], out: Path, name: str | None = None) -> str:
    """Fill `out` with an artifact, the winner when no name is given; return how to use it.

    Every file is held against the artifact's record. Files are hard links where the file system has them: change none.
    ParamsError when `out` is there already, or when the artifact is of a format that the tools do not take.
    """
    name = name or _winner()
    folder = paths.artifact(name)
    artifact = Artifact.load(folder / FILE)
    if artifact.unavailable is not None:
        raise ParamsError(f"artifact {name} does not exist: {artifact.unavailable}")
    digests.check_files(folder, artifact.files)
    with _fresh(out) as partial:
        if form == "folder":
            _place(artifact, folder, partial)
            return f"{out}: artifact {name}, {len(artifact.files)} files and their record, {FILE}"
        model = _fill(artifact, folder, partial)
    return (
        f"Ollama:     ollama create {model} -f {out / 'Modelfile'}\n"
        f"LM Studio:  cp -r {out / PUBLISHER} ~/.lmstudio/models/\n"
        f"LocalAI:    local-ai run --models-path {out}"
    )


def _winner() -> str:
    winner = Selection.load(paths.SELECTION).winner
    if winner is None:
        raise SelectionError("no artifact passes the constraints, so none is the winner; name one with --artifact")
    return winner


def _fill(artifact: Artifact, folder: Path, out: Path) -> str:
    """Write the tree for Ollama, LM Studio and LocalAI; return the model's name."""
    recipe = params.RECIPE.validate_python(artifact.recipe)
    if not isinstance(recipe, Gguf):
        raise ParamsError(
            f"artifact {artifact.name} is {recipe.backend}; Ollama, LM Studio and LocalAI take GGUF: name an artifact "
            "of that format with --artifact, or use `export folder`"
        )
    checkpoint = Checkpoint.load(paths.CHECKPOINT / FILE)
    if checkpoint.digest != artifact.checkpoint:
        raise StorageError(f"{paths.CHECKPOINT} is not what artifact {artifact.name} was made of; run `dvc repro`")
    vocabulary = Vocabulary.load(paths.CORPUS / "vocabulary.json")
    model = _model_name(checkpoint.source, artifact.name)
    place = Path(PUBLISHER) / model
    _place(artifact, folder, out / place)
    weights = (place / recipe.file_name).as_posix()
    context = min(checkpoint.context_tokens, CONTEXT_TOKENS)
    text = modelfile(weights, _prompting(checkpoint, vocabulary), context)
    (out / "Modelfile").write_text(
        f"# {model}: {checkpoint.source}, {recipe.quantization}, artifact {artifact.digest}\n"
        f"# It reads up to {checkpoint.context_tokens} tokens; num_ctx says for how many memory is set aside.\n{text}",
        encoding="utf-8",
    )
    settings = _localai(model, weights, context, chats=vocabulary.chat_template is not None)
    (out / f"{model}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return model


def _prompting(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Prompting:
    """Find out how the checkpoint writes conversations; transformers is only needed where it has a template."""
    if vocabulary.chat_template is None:
        return Prompting.plain(vocabulary)
    from pipeline.backends.common import hf_tokenizer

    tokenizer = hf_tokenizer.load(link.ensure(checkpoint, checkpoint.source, paths.CHECKPOINT))
    return Prompting.of(
        vocabulary,
        lambda messages, opened: str(
            tokenizer.apply_chat_template(messages, add_generation_prompt=opened, tokenize=False)
        ),
    )


def _localai(model: str, weights: str, context: int, *, chats: bool) -> dict[str, object]:
    """LocalAI's model configuration (localai.io, "Model Configuration"); it renders the GGUF's own chat template."""
    plain: dict[str, object] = {
        "name": model,
        "backend": "llama-cpp",
        "parameters": {"model": weights},
        "context_size": context,
    }
    if not chats:
        return plain | {"known_usecases": ["completion"]}
    chat = {"options": ["use_jinja:true"], "template": {"use_tokenizer_template": True}}
    return plain | {"known_usecases": ["chat", "completion"]} | chat


def _model_name(source: str, artifact: str) -> str:
    """A name that Ollama, LocalAI and every file system take."""
    base = source.rstrip("/").rpartition("/")[2] or "model"
    return re.sub(r"[^a-z0-9._-]+", "-", f"{base}-{artifact}".lower()).strip("-._")


def _place(artifact: Artifact, folder: Path, target: Path) -> None:
    """Put the artifact's files and its record into a folder; what had to be copied is held against the record again."""
    for file in artifact.files:
        place = target / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        source = (folder / file.path).resolve()
        try:
            os.link(source, place)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, place)
            digests.check_files(target, [file])
    target.mkdir(parents=True, exist_ok=True)
    (target / FILE).write_text(json.dumps(artifact.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")


@contextmanager
def _fresh(out: Path) -> Iterator[Path]:
    """Give a folder to fill beside `out`; it becomes `out` when the block ends well, and vanishes when it does not."""
    if out.exists():
        raise ParamsError(f"{out} is there already; name a folder that is not")
    partial = out.parent / f".{out.name}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        partial.rename(out)
    except PermissionError as error:
        raise StorageError(f"{error.filename or out}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
