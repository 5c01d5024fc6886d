"""The model card of an artifact on the Hub: what it is, what was measured, beside which others, and how."""

import yaml

from pipeline import metrics
from pipeline.params import RECIPE
from pipeline.records import Artifact, Checkpoint, Corpus, File, Reference, Selection, Standing
from pipeline.report import blocks, markdown, table
from pipeline.report.blocks import Cell

HUB = "hf://"


def card(
    title: str,
    artifact: Artifact,
    selection: Selection,
    checkpoint: Checkpoint,
    corpus: Corpus,
    reference: Reference,
    licence: str | None,
) -> str:
    """Return README.md, its metadata first."""
    (standing,) = (one for one in selection.ranking if one.name == artifact.name)
    parts = [
        f"---\n{yaml.safe_dump(_metadata(artifact, checkpoint, licence), sort_keys=False)}---",
        f"# {title}",
        _origin(artifact, checkpoint),
        "## Measured",
        markdown.rendered(_measured(standing)),
        "In brackets: 95 % intervals. Perplexity, KL divergence and agreement are against the checkpoint itself on the "
        f"same token ids: {reference.perplexity.tokens:,} tokens in {corpus.evaluation.windows} windows of "
        f"{corpus.window_tokens} from {corpus.evaluation.source}. Times are of the machine that measured.",
        "## Beside the others",
        markdown.rendered(table.ranking(selection)),
        "## Files",
        markdown.rendered(_files(artifact.files)),
        "`assay.json` is the record that these figures belong to: recipe, tools, and the digest of every input.",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(artifact: Artifact, checkpoint: Checkpoint, licence: str | None) -> dict[str, object]:
    """What the Hub reads of a card; see hf.co/docs/hub/model-cards."""
    metadata: dict[str, object] = {} if licence is None else {"license": licence}
    if checkpoint.source.startswith(HUB):
        metadata["base_model"] = checkpoint.source.removeprefix(HUB)
        if RECIPE.validate_python(artifact.recipe).quantized:
            metadata["base_model_relation"] = "quantized"
    return metadata | {"pipeline_tag": "text-generation", "tags": ["assay", str(artifact.recipe["backend"])]}


def _origin(artifact: Artifact, checkpoint: Checkpoint) -> str:
    recipe = ", ".join(f"{key} {value}" for key, value in artifact.recipe.items() if value is not None)
    tools = ", ".join(f"{name} {version}" for name, version in artifact.tools.items())
    name = checkpoint.source.removeprefix(HUB)
    source = f"[{name}](https://huggingface.co/{name})" if checkpoint.source.startswith(HUB) else f"`{name}`"
    at = f" at `{checkpoint.revision}`" if checkpoint.revision else ""
    return (
        f"`{artifact.name}` of {source}{at}, sha256 `{checkpoint.digest[:16]}`, {checkpoint.parameters:,} parameters. "
        f"Recipe: {recipe}." + (f" Built with {tools}." if tools else "")
    )


def _measured(standing: Standing) -> blocks.Table:
    rows = []
    for name, found in standing.metrics.items():
        if found is not None and (name in table.SHOWN or name.startswith("accuracy.")):
            metric = metrics.named(name)
            rows.append((Cell(text=metric.title), table.figure(found, metric.show)))
    return blocks.table("What was measured", ("metric", "value"), rows)


def _files(files: tuple[File, ...]) -> blocks.Table:
    rows = [
        (Cell(text=f"`{file.path}`"), Cell(text=f"{file.bytes:,}", value=file.bytes), Cell(text=f"`{file.sha256}`"))
        for file in files
    ]
    return blocks.table("Files", ("file", "bytes", "sha256"), rows)
