"""What an image holds, as a CycloneDX 1.6 document: the model with its measurements, and all software around it.

Written as plain JSON: cyclonedx-python-lib 11 has no model cards, which are the point here. Tests hold the result
against its schema (cyclonedx.org/docs/1.6/json).
"""

import re
import tarfile
import uuid
from collections.abc import Iterable
from typing import Any

from evals.statistics import Estimate
from pipeline import oci
from pipeline.engines import ENGINES
from pipeline.images import manifest
from pipeline.records import Artifact, Checkpoint, Engine, Image, Package, Standing
from pipeline.toolchains import llama_cpp

STATUS, RELEASE = "var/lib/dpkg/status", "usr/lib/os-release"


def bom(
    image: Image, engine: Engine, layout: oci.Layout, artifact: Artifact, checkpoint: Checkpoint, standing: Standing
) -> dict[str, Any]:
    """Describe an image; equal images give equal documents, so it has no time stamp and a serial number made of it."""
    assert image.digest is not None
    subject = {
        "bom-ref": "image",
        "type": "container",
        "name": image.name,
        "version": image.version,
        "purl": f"pkg:oci/{image.name.rpartition('/')[2]}@{image.digest.replace(':', '%3A')}",
        "hashes": [_sha256(image.digest)],
    }
    publisher = distribution(layout)
    components = [
        _model(artifact, checkpoint, standing),
        *map(_python, engine.packages),
        *(_debian(package, publisher) for package in debian_packages(layout)),
    ]
    if ENGINES[engine.name].toolchain:
        components.append(_llama_cpp())
    if manifest.load().public(engine.name) is not None:
        components.append(_runtime(image))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, image.digest)}",
        "version": 1,
        "metadata": {"component": subject},
        "components": components,
        "dependencies": [
            {"ref": "image", "dependsOn": [one["bom-ref"] for one in components]},
            *({"ref": one["bom-ref"]} for one in components),
        ],
    }


def _model(artifact: Artifact, checkpoint: Checkpoint, standing: Standing) -> dict[str, Any]:
    source = checkpoint.source + (f"@{checkpoint.revision}" if checkpoint.revision else "")
    metrics = [_metric(name, found) for name, found in standing.metrics.items() if found is not None]
    return {
        "bom-ref": "model",
        "type": "machine-learning-model",
        "name": artifact.name,
        "version": artifact.digest,
        "description": f"{checkpoint.architecture} of {source}, as {artifact.name}",
        "hashes": [_sha256(artifact.digest)],
        "modelCard": {
            "modelParameters": {
                "task": "text-generation",
                "architectureFamily": "transformer",
                "modelArchitecture": checkpoint.architecture,
            },
            "quantitativeAnalysis": {"performanceMetrics": metrics},
        },
        "pedigree": {
            "ancestors": [
                {
                    "bom-ref": "checkpoint",
                    "type": "machine-learning-model",
                    "name": checkpoint.source,
                    "version": checkpoint.revision or checkpoint.digest,
                    "hashes": [_sha256(checkpoint.digest)],
                }
            ]
        },
        "properties": [
            {"name": f"ai.assay:recipe.{key}", "value": str(value)} for key, value in artifact.recipe.items()
        ],
    }


def _metric(name: str, found: Estimate) -> dict[str, Any]:
    metric: dict[str, Any] = {"type": name, "value": f"{found.value:.6g}"}
    if found.low is not None and found.high is not None:
        metric["confidenceInterval"] = {"lowerBound": f"{found.low:.6g}", "upperBound": f"{found.high:.6g}"}
    return metric


def purl(package: Package) -> str:
    """Return a Python package's address as package-url writes it."""
    return f"pkg:pypi/{package.name}@{_quoted(package.version)}"


def _python(package: Package) -> dict[str, Any]:
    return {
        "bom-ref": purl(package),
        "type": "library",
        "name": package.name,
        "version": package.version,
        "purl": purl(package),
        "hashes": [_sha256(package.sha256)],
    }


def _runtime(image: Image) -> dict[str, Any]:
    """A runtime that came as an image: what its Python holds is for that image's own publisher to list."""
    assert image.base is not None
    assert image.base_digest is not None
    return {
        "bom-ref": "runtime",
        "type": "container",
        "name": image.base.rpartition(":")[0],
        "version": image.base.rpartition(":")[2],
        "hashes": [_sha256(image.base_digest)],
    }


def _llama_cpp() -> dict[str, Any]:
    pin = llama_cpp.pin()
    address = f"pkg:pypi/{pin.project}@{pin.version}"
    return {
        "bom-ref": address,
        "type": "library",
        "name": pin.project,
        "version": pin.version,
        "purl": address,
        "hashes": [_sha256(pin.sha256)],
        "licenses": [{"license": {"id": "MIT"}}],
        "description": "llama.cpp (llama-server and its libraries) and its Python bindings, built from this source",
    }


def _debian(package: dict[str, str], publisher: str) -> dict[str, Any]:
    address = f"pkg:deb/{publisher}/{package['Package']}@{_quoted(package['Version'])}?arch={package['Architecture']}"
    return {
        "bom-ref": address,
        "type": "library",
        "name": package["Package"],
        "version": package["Version"],
        "purl": address,
    }


def debian_packages(layout: oci.Layout) -> list[dict[str, str]]:
    """List what dpkg installed, by the topmost layer that holds its status; none for an image without dpkg."""
    return list(_paragraphs(_topmost(layout, STATUS)))


def distribution(layout: oci.Layout) -> str:
    """Return the distribution's name of itself, such as ubuntu; that of dpkg's own where an image does not say."""
    found = re.search(r"^ID=\"?([a-z0-9._-]+)", _topmost(layout, RELEASE), re.MULTILINE)
    return found[1] if found else "debian"


def _topmost(layout: oci.Layout, name: str) -> str:
    """Return a file's text by the topmost layer that holds it, '' where none does."""
    for layer in reversed(layout.layers):
        with tarfile.open(layout.path(layer.digest)) as tar:
            for member in tar:
                if member.name.removeprefix("./") == name and (file := tar.extractfile(member)):
                    return file.read().decode()
    return ""


def _paragraphs(text: str) -> Iterable[dict[str, str]]:
    for paragraph in text.split("\n\n"):
        lines = (line.partition(": ") for line in paragraph.splitlines() if not line.startswith(" "))
        fields = {name: value for name, _, value in lines}
        if fields.get("Status", "").endswith(" installed"):
            yield fields


def _quoted(version: str) -> str:
    return version.replace(":", "%3A").replace("+", "%2B")


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest.removeprefix("sha256:")}
