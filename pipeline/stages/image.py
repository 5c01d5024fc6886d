"""The image: engine, weights, code and evidence in one OCI layout, with its SBOM and provenance beside it."""

import json
import os
from pathlib import Path
from typing import Any

from evals.statistics import Estimate
from pipeline import digests, oci, outputs, paths
from pipeline.errors import RequirementError
from pipeline.images import assemble, provenance, sbom
from pipeline.images.manifest import ROOT
from pipeline.params import Params
from pipeline.records import (
    FILE,
    Artifact,
    Checkpoint,
    Corpus,
    Engine,
    Image,
    Latency,
    Revision,
    Selection,
    Served,
    Standing,
)

HEADLINES = (
    *("perplexity_ratio", "kld_mean", "served_output_tokens_per_second", "served_ttft_seconds_p50"),
    *("decode_tokens_per_second", "bytes"),
)
"""Metrics of a Standing: what an image tells about itself before it is pulled."""


def image(params: Params) -> None:
    """Fill image/ with layout/, assay.json, sbom.cdx.json and provenance.json."""
    selection = Selection.load(paths.SELECTION)
    assert selection.winner is not None, "selection fails where there is none"
    folder = paths.artifact(selection.winner)
    artifact, engine = Artifact.load(folder / FILE), Engine.load(paths.ENGINE / FILE)
    revision = Revision.load(paths.REVISION)
    identity = Image(
        name=params.image.name,
        version=version(params.image.version, revision),
        revision=revision.commit,
        artifact=artifact.name,
        artifact_digest=artifact.digest,
        unavailable=engine.unavailable,
    )
    with outputs.folder(paths.IMAGE) as out:
        if engine.unavailable is not None:
            if os.environ.get("ASSAY_STRICT"):
                raise RequirementError(engine.unavailable)
            identity.save(out / FILE)
            return
        digests.check_files(folder, artifact.files)
        _fill(
            out, params, identity, engine, artifact, next(one for one in selection.ranking if one.name == artifact.name)
        )


def version(wanted: str, revision: Revision) -> str:
    """Put the code's state behind a version, as semantic versioning's build metadata."""
    if revision.commit is None:
        return wanted
    return f"{wanted}+g{revision.commit[:8]}" + (".dirty" if revision.dirty else "")


def _fill(out: Path, params: Params, identity: Image, engine: Engine, artifact: Artifact, standing: Standing) -> None:
    checkpoint, corpus = Checkpoint.load(paths.CHECKPOINT / FILE), Corpus.load(paths.CORPUS / FILE)
    evidence = {f"{noun}.json": path for noun, path in paths.evidence(artifact.name).items()}
    served = Latency.load(paths.latency(artifact.name)).served
    assert served is not None, "an unavailable artifact wins nothing"
    layout, layers = assemble.assemble(
        oci.Layout.open(paths.ENGINE / "layout"),
        paths.artifact(artifact.name),
        ROOT,
        {**evidence, paths.REPORT.name: paths.REPORT},
        _annotations(params, identity, engine, artifact, checkpoint, standing),
        settings(served),
        out / "layout",
    )
    large = [layer for layer in layers if layer.kind == "weights" and layer.bytes > assemble.LAYER_BYTES]
    record = identity.model_copy(
        update={
            "engine": engine.digest,
            "base": engine.base,
            "base_digest": engine.base_digest,
            "digest": layout.image.digest,
            "bytes": sum(layer.bytes for layer in layers),
            "layers": layers,
            "notes": tuple(
                f"layer {layer.digest} has {layer.bytes / 1e9:.1f} GB, as the file in it: some registries refuse it"
                for layer in large
            ),
        }
    )
    record.save(out / FILE)
    bom = sbom.bom(record, engine, layout, artifact, checkpoint, standing)
    _write(out / "sbom.cdx.json", bom)
    wanted = params.image.model_dump(mode="json")
    _write(out / "provenance.json", provenance.statement(record, engine, artifact, checkpoint, corpus, wanted))


def settings(served: Served) -> dict[str, str]:
    """Set the gateway to the engine that the figures are of, laid out as it was: so it serves, or not at all."""
    found: dict[str, str] = {"ASSAY_ENGINE": served.engine}
    if served.placement is None:
        return found
    return found | {f"ASSAY_{key.upper()}": f"{value:g}" for key, value in served.placement.model_dump().items()}


def _annotations(
    params: Params, identity: Image, engine: Engine, artifact: Artifact, checkpoint: Checkpoint, standing: Standing
) -> dict[str, str]:
    """Say what can be known of an image without pulling it: OCI's own names first, then ours."""
    assert engine.base is not None
    assert engine.base_digest is not None
    known: dict[str, str | None] = {
        "org.opencontainers.image.title": identity.name,
        "org.opencontainers.image.version": identity.version,
        "org.opencontainers.image.revision": identity.revision,
        "org.opencontainers.image.source": params.image.source,
        "org.opencontainers.image.licenses": params.image.licenses,
        **oci.base_annotations(engine.base, engine.base_digest),
        "ai.assay.artifact": artifact.name,
        "ai.assay.artifact.digest": f"sha256:{artifact.digest}",
        "ai.assay.recipe": json.dumps(artifact.recipe, sort_keys=True),
        "ai.assay.checkpoint": checkpoint.source,
        "ai.assay.checkpoint.revision": checkpoint.revision,
        "ai.assay.checkpoint.digest": f"sha256:{checkpoint.digest}",
        "ai.assay.engine": engine.name,
    }
    for name in HEADLINES:
        known[f"ai.assay.{name.replace('_', '-')}"] = _figure(standing.metrics.get(name))
    return {name: value for name, value in known.items() if value is not None}


def _figure(found: Estimate | None) -> str | None:
    if found is None:
        return None
    interval = "" if found.low is None or found.high is None else f" [{found.low:.6g}, {found.high:.6g}]"
    return f"{found.value:.6g}{interval}"


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
