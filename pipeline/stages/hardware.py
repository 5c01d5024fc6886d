"""What becomes of an artifact on a machine that lacks the hardware for it: a row that says so, or an error."""

import os

from pipeline import paths
from pipeline.errors import BuildError, RequirementError
from pipeline.records import Artifact, Hardware


def lacking(name: str) -> str | None:
    """Say why nothing can be done with an artifact on this machine, or None.

    RequirementError under ASSAY_STRICT, as for a release that must have everything.
    """
    found = Hardware.load(paths.hardware(name))
    if found.lacks is None:
        return None
    if found.strict:
        raise RequirementError(f"{name} {found.lacks}, which this machine does not have, and ASSAY_STRICT is set")
    return f"here: {found.lacks}"


def unavailable(artifact: Artifact) -> str | None:
    """Say why an artifact cannot be measured: there is none, or it came from a machine that had what this one lacks.

    BuildError under ASSAY_STRICT for one whose build went wrong.
    """
    if artifact.failure is not None and os.environ.get("ASSAY_STRICT"):
        raise BuildError(
            f"{artifact.name} {artifact.failure.words}, and ASSAY_STRICT is set; "
            f"`{artifact.failure.again}` tries it again"
        )
    return artifact.unavailable or lacking(artifact.name)
