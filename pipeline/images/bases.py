"""Which base image is built on, and why."""

import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from tqdm import tqdm

from pipeline import oci
from pipeline.errors import RegistryError, RequirementError
from pipeline.images import debootstrap, manifest, wheels
from pipeline.images.manifest import Images, Pin

DEBOOTSTRAP = "debootstrap"

Lookup = Callable[[str], str]
"""A reference with a tag to the digest that its registry has for it; RegistryError when it cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """One base image."""

    name: str
    digest: str
    python: str
    """Version of its python3, such as 3.13."""
    layout: oci.Layout | None = None
    """Where it lies, when it was made here; otherwise a builder pulls it."""

    @property
    def reference(self) -> str:
        """What a builder pulls: by digest, so that no tag moves under it."""
        return f"{self.name}@{self.digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bases:
    """What an engine image runs on, and what its packages are installed with; both have one Python."""

    runtime: Base
    build: Base


Ask = Callable[[str], str]
"""A reference with a digest to the version of its python3; RequirementError when it has none or cannot be pulled."""


def of_engine(engine: str, wanted: str | None, lookup: Lookup, ask: Ask) -> Bases:
    """Return the bases of an engine: the image that its runtime comes as, or those for image.base, see `find`."""
    pin = manifest.load().public(engine)
    if pin is None:
        return find(wanted, wheels.pythons(engine), lookup, ask)
    try:
        base = Base(name=pin.image, digest=pin.digest or lookup(pin.image), python=pin.python)
    except RegistryError as error:
        raise RequirementError(
            f"no runtime image for {engine}: containers/images.toml has no digest for {pin.image}, and it cannot be "
            f"looked up: {error}. Run `assay images pin` where that registry can be reached, and build there"
        ) from error
    return Bases(runtime=base, build=base)  # which has its Python, and pip


def find(wanted: str | None, pythons: Collection[str], lookup: Lookup, ask: Ask) -> Bases:
    """Return the bases for image.base, or ASSAY_BASE, which wins; `pythons` are those that wheels are locked for.

    None is images.toml's, where it has digests; it has none until `assay images pin` could reach the registries, and
    then a distribution's packages are used, which the log and the record say. It never depends on whether a registry
    answers just now: a pinned base that cannot be pulled is no base. RequirementError says what would help.
    """
    wanted = os.environ.get("ASSAY_BASE") or wanted
    images = manifest.load()
    pinned = images.runtime.digest and images.build.digest and images.runtime.python in pythons
    if wanted is None and pinned:
        return Bases(runtime=_pinned(images.runtime, lookup), build=_pinned(images.build, lookup))
    if wanted is None:
        if (lack := debootstrap.missing()) is not None:
            raise RequirementError(
                f"no base image: containers/images.toml has no digest for {images.runtime.image}, and {lack}. Run "
                f"`assay images pin` where that registry can be reached; or {debootstrap.REMEDY}"
            )
        say = f"containers/images.toml has no digest for {images.runtime.image}; the base is made of"
        tqdm.write(f"assay: {say} {debootstrap.suite(images.debootstrap, pythons)}'s packages", file=sys.stderr)
    if wanted in (None, DEBOOTSTRAP):
        return Bases(runtime=_made(images, "runtime", pythons), build=_made(images, "build", pythons))
    name, _, digest = wanted.partition("@")
    digest = digest or _digest(name, lookup)
    python = ask(f"{name}@{digest}")
    if python not in pythons:
        raise RequirementError(
            f"no base image: image.base {name} has Python {python}, and wheels are locked for "
            f"{', '.join(sorted(pythons))}; name a base with one of these"
        )
    runtime = Base(name=name, digest=digest, python=python)
    build = _pinned(images.build, lookup) if images.build.python == python else _made(images, "build", {python})
    return Bases(runtime=runtime, build=build)


def _made(images: Images, kind: Literal["runtime", "build"], pythons: Collection[str]) -> Base:
    """Make a base of a release's packages, or find it again."""
    suite = debootstrap.suite(images.debootstrap, pythons)
    layout = debootstrap.layout(images.debootstrap, suite, kind)
    python = images.debootstrap.suites[suite].python
    return Base(name=f"{DEBOOTSTRAP}:{suite}", digest=layout.image.digest, python=python, layout=layout)


def _pinned(pin: Pin, lookup: Lookup) -> Base:
    return Base(name=pin.image, digest=pin.digest or _digest(pin.image, lookup), python=pin.python)


def _digest(image: str, lookup: Lookup) -> str:
    try:
        return lookup(image)
    except RegistryError as error:
        raise RequirementError(
            f"no base image: the digest of {image} cannot be looked up: {error}. Set ASSAY_BASE={DEBOOTSTRAP}, or "
            "name a base with its digest in image.base"
        ) from error
