"""What an image depends on and DVC cannot watch: the commit of its code, and what builds and starts images here."""

import os
import shutil

from pipeline import processes
from pipeline.errors import BuildError, RequirementError
from pipeline.images import builders, container, debootstrap
from pipeline.images.assemble import PACKAGES
from pipeline.images.manifest import ROOT
from pipeline.records import Builders, Revision
from pipeline.toolchains import llama_cpp


def revision() -> Revision:
    """Ask git about the packages that go into an image; commits that leave those alone do not make another image."""
    none = Revision(commit=None, dirty=False)
    if shutil.which("git") is None:
        return none
    git = ["git", "-C", str(ROOT)]
    try:
        commit = processes.run([*git, "log", "-1", "--format=%H", "--", *PACKAGES], what="git log").strip()
        changes = processes.run([*git, "status", "--porcelain", "--", *PACKAGES], what="git status").strip()
    except BuildError:  # not a repository
        return none
    return Revision(commit=commit, dirty=bool(changes)) if commit else none


def here() -> Builders:
    """Note what there is, without building or pulling anything."""
    try:
        builder: str | None = builders.find().name
    except RequirementError:
        builder = None
    try:
        runtime: str | None = container.find().name
    except RequirementError:
        runtime = None
    return Builders(
        builder=builder,
        container=runtime,
        base=os.environ.get("ASSAY_BASE"),
        llama_cpp=llama_cpp.key(),
        debootstrap=debootstrap.missing() is None,
        strict=bool(os.environ.get("ASSAY_STRICT")),
    )
