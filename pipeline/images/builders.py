"""Whatever builds a Containerfile here: buildah, podman or docker, in this order."""

import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

from pipeline import digests, oci, processes
from pipeline.errors import BuildError, RequirementError
from pipeline.images import cache, rootless
from pipeline.images.bases import Base, Bases

Name = Literal["buildah", "podman", "docker"]

REMEDY = "apt-get install buildah (or podman, or docker with buildx)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """One of them."""

    name: Name
    version: str

    def build(self, context: Path, bases: Bases, layout: Path) -> None:
        """Build the Containerfile of a folder into an OCI layout; every time in it is 0.

        RequirementError when a base cannot be pulled, BuildError with the last lines when the build fails.
        """
        if self.name == "docker":
            _docker(context, bases, layout)
        else:
            _containers(self.name, context, bases, layout)

    def python(self, reference: str) -> str:
        """Ask an image, named with its digest, for the version of its python3, such as 3.13.

        RequirementError when it cannot be pulled or has none.
        """
        base = Base(name=reference.partition("@")[0], digest=reference.partition("@")[2], python="")

        def fill(folder: Path) -> None:
            with TemporaryDirectory(dir=folder) as scratch:
                context, layout = Path(scratch) / "context", Path(scratch) / "layout"
                context.mkdir()
                (context / "Containerfile").write_text(ASKING, encoding="utf-8")
                try:
                    self.build(context, Bases(runtime=base, build=base), layout)
                except BuildError as error:
                    raise RequirementError(f"no base image: {reference} has no python3 that runs: {error}") from error
                (folder / "version").write_bytes(_only_file(oci.Layout.open(layout)))

        folder = cache.folder(f"python-{digests.of_value(reference)[:16]}", fill)
        return (folder / "version").read_text(encoding="utf-8").strip()


ASKING = """ARG RUNTIME
ARG BUILD
FROM ${RUNTIME} AS asked
RUN python3 -c "import sys; print('%d.%d' % sys.version_info[:2])" > /assay-python
FROM scratch
COPY --from=asked /assay-python /assay-python
"""


def _only_file(layout: oci.Layout) -> bytes:
    """Return the bytes of the one file that an image holds."""
    for layer in layout.layers:
        with tarfile.open(layout.path(layer.digest)) as tar:
            for member in tar:
                if member.isfile() and (file := tar.extractfile(member)):
                    return file.read()
    raise BuildError(f"{layout.root}: holds no file")


def find() -> Builder:
    """Return the first that works here. RequirementError, with what would help, when there is none."""
    lacks = []
    for name in get_args(Name):
        if not shutil.which(name):
            continue
        if name != "docker" and (lack := rootless.lack(name)) is not None:
            lacks.append(f"{name}: {lack}")
        elif (version := _version(name)) is not None:
            return Builder(name=name, version=version)
    raise RequirementError(f"nothing here builds images: {'; '.join(lacks) or REMEDY}")


def _version(name: Name) -> str | None:
    """Ask for the version; None for a docker without its daemon or without buildx."""
    questions = {
        "buildah": [["buildah", "version", "--json"]],
        "podman": [["podman", "version", "--format", "{{.Client.Version}}"]],
        "docker": [["docker", "info", "--format", "{{.ServerVersion}}"], ["docker", "buildx", "version"]],
    }
    try:
        answers = [processes.run(question, what=f"{name} version").strip() for question in questions[name]]
    except BuildError:
        return None
    return json.loads(answers[0])["version"] if name == "buildah" else answers[0].splitlines()[-1]


def _containers(name: str, context: Path, bases: Bases, layout: Path) -> None:
    """Build with buildah or podman, which take the same options.

    RUN steps need no runtime and no cgroups of their own: they are isolated by chroot, unless BUILDAH_ISOLATION says
    otherwise.
    """
    environment = {"BUILDAH_ISOLATION": "chroot", **os.environ}
    images = {
        "RUNTIME": _pull(name, bases.runtime, environment),
        "BUILD": _pull(name, bases.build, environment),
    }
    arguments = [word for key, image in images.items() for word in ("--build-arg", f"{key}={image}")]
    command = [name, "build", *arguments, "--format", "oci", "--timestamp", "0", "--layers", "--network", "none"]
    identity = context / "image-id"
    command += ["--iidfile", str(identity), "--file", str(context / "Containerfile"), str(context)]
    processes.run(command, what=f"{name} build", env=environment)
    image = identity.read_text(encoding="utf-8").strip()
    processes.run([name, "push", "--quiet", image, f"oci:{layout}"], what=f"{name} push", env=environment)


def _pull(name: str, base: Base, environment: Mapping[str, str]) -> str:
    # Relative, because the image is named after the path, and not every path is a name.
    source = f"oci:{base.layout.root.name}" if base.layout else f"docker://{base.reference}"
    folder = base.layout.root.parent if base.layout else None
    try:
        printed = processes.run([name, "pull", "--quiet", source], what=f"{name} pull", env=environment, cwd=folder)
    except BuildError as error:
        raise RequirementError(f"no base image: {error}") from error
    return printed.split()[-1]


def _docker(context: Path, bases: Bases, layout: Path) -> None:
    """Build with buildx; its builder must be one that can write OCI layouts (docker buildx create --use)."""
    command = ["docker", "buildx", "build", "--provenance=false", "--sbom=false", "--network", "none"]
    for key, base in (("RUNTIME", bases.runtime), ("BUILD", bases.build)):
        if base.layout:
            image = f"assay-{key.lower()}"
            command += ["--build-context", f"{image}=oci-layout://{base.layout.root}@{base.digest}"]
        else:
            image = base.reference
        command += ["--build-arg", f"{key}={image}"]
    command += ["--output", f"type=oci,tar=false,rewrite-timestamp=true,dest={layout}"]
    command += ["--file", str(context / "Containerfile"), str(context)]
    processes.run(command, what="docker buildx build", env={**os.environ, "SOURCE_DATE_EPOCH": "0"})
