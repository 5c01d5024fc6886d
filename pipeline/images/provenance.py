"""How an image came to be: an in-toto statement with SLSA's provenance predicate (slsa.dev/spec/v1.0/provenance).

It holds no times and no host, so that two builds of one state give the same document; who ran the build is for the
signature to say.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.engines import ENGINES
from pipeline.images import sbom
from pipeline.records import Artifact, Checkpoint, Corpus, Engine, Image
from pipeline.toolchains import llama_cpp

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:assay:image:v1"
"""`externalParameters` are image of params.yaml, the artifact's name and its recipe."""


def statement(
    image: Image, engine: Engine, artifact: Artifact, checkpoint: Checkpoint, corpus: Corpus, wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the statement; `wanted` is the section image of params.yaml."""
    assert image.digest is not None
    return {
        "_type": STATEMENT,
        "subject": [{"name": image.name, "digest": _digest(image.digest)}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "image": dict(wanted), "artifact": artifact.name, "recipe": dict(artifact.recipe),
                },
                "internalParameters": {"engineInputs": dict(engine.inputs), "tools": dict(artifact.tools)},
                "resolvedDependencies": _dependencies(image, engine, artifact, checkpoint, corpus),
            },
            "runDetails": {"builder": {"id": "urn:assay:pipeline", "version": _builder(engine, image)}},
        },
    }  # fmt: skip


def _dependencies(
    image: Image, engine: Engine, artifact: Artifact, checkpoint: Checkpoint, corpus: Corpus
) -> list[dict[str, Any]]:
    assert engine.digest is not None
    assert engine.base_digest is not None
    found: list[dict[str, Any]] = [
        {"name": "base", "uri": engine.base, "digest": _digest(engine.base_digest)},
        {"name": "engine", "digest": _digest(engine.digest)},
        {"name": "artifact", "digest": _digest(artifact.digest)},
        {"name": "checkpoint", "uri": checkpoint.source, "digest": _digest(checkpoint.digest)},
        {"name": "corpus", "digest": _digest(corpus.digest)},
    ]
    if checkpoint.revision:
        found[3]["digest"]["gitCommit"] = checkpoint.revision
    if image.revision:
        found.append({"name": "code", "digest": {"gitCommit": image.revision}})
    if ENGINES[engine.name].toolchain:
        pin = llama_cpp.pin()
        found.append({"uri": f"pkg:pypi/{pin.project}@{pin.version}", "digest": {"sha256": pin.sha256}})
    for one in engine.packages:
        found.append({"uri": sbom.purl(one), "digest": {"sha256": one.sha256}})
    return found


def _builder(engine: Engine, image: Image) -> dict[str, str]:
    name, _, version = (engine.builder or "").partition(" ")
    return {"assay": image.version, name: version}


def _digest(value: str) -> dict[str, str]:
    return {"sha256": value.removeprefix("sha256:")}
