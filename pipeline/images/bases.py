"""Which base image is built on, and why."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from pipeline import oci
from pipeline.errors import RegistryError, RequirementError
from pipeline.images import debootstrap, manifest
from pipeline.images.manifest import Pin

DEBOOTSTRAP = "debootstrap"

Lookup = Callable[[str], str]
"""A reference with a tag to the digest that its registry has for it; RegistryError when it cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """One base image."""

    name: str
    digest: str
    layout: oci.Layout | None = None
    """Where it lies, when it was made here; otherwise a builder pulls it."""

    @property
    def reference(self) -> str:
        """What a builder pulls: by digest, so that no tag moves under it."""
        return f"{self.name}@{self.digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bases:
    """What an engine image runs on, and what it is compiled in."""

    runtime: Base
    build: Base


def of_engine(engine: str, wanted: str | None, lookup: Lookup) -> Bases:
    """Return the bases of an engine: the image that its runtime comes as, or those for image.base, see `find`."""
    pin = manifest.load().public(engine)
    if pin is None:
        return find(wanted, lookup)
    try:
        base = Base(name=pin.image, digest=pin.digest or lookup(pin.image))
    except RegistryError as error:
        raise RequirementError(
            f"no runtime image for {engine}: containers/images.toml has no digest for {pin.image}, and it cannot be "
            f"looked up: {error}. Run `assay images pin` where that registry can be reached, and build there"
        ) from error
    return Bases(runtime=base, build=base)  # which has its Python, and pip


def find(wanted: str | None, lookup: Lookup) -> Bases:
    """Return the bases for image.base, or ASSAY_BASE, which wins.

    None is images.toml's, where it has digests; it has none until `assay images pin` could reach the registries, and
    then Debian packages are used, which the log and the record say. It never depends on whether a registry answers
    just now: a pinned base that cannot be pulled is no base. RequirementError says what would help.
    """
    wanted = os.environ.get("ASSAY_BASE") or wanted
    images = manifest.load()
    if wanted is None and images.runtime.digest and images.build.digest:
        return Bases(runtime=_pinned(images.runtime, lookup), build=_pinned(images.build, lookup))
    if wanted is None:
        if (lack := debootstrap.missing()) is not None:
            raise RequirementError(
                f"no base image: containers/images.toml has no digest for {images.runtime.image}, and {lack}. Run "
                f"`assay images pin` where that registry can be reached; or {debootstrap.REMEDY}"
            )
        say = f"containers/images.toml has no digest for {images.runtime.image}; the base is made of Debian packages"
        tqdm.write(f"assay: {say}", file=sys.stderr)
    if wanted in (None, DEBOOTSTRAP):
        layouts = {kind: debootstrap.layout(images.debootstrap, kind) for kind in ("runtime", "build")}
        made = {
            kind: Base(name=DEBOOTSTRAP, digest=layout.image.digest, layout=layout) for kind, layout in layouts.items()
        }
        return Bases(**made)
    name, _, digest = wanted.partition("@")
    return Bases(runtime=_pinned(Pin(image=name, digest=digest or None), lookup), build=_pinned(images.build, lookup))


def _pinned(pin: Pin, lookup: Lookup) -> Base:
    try:
        return Base(name=pin.image, digest=pin.digest or lookup(pin.image))
    except RegistryError as error:
        raise RequirementError(
            f"no base image: the digest of {pin.image} cannot be looked up: {error}. Set ASSAY_BASE={DEBOOTSTRAP}, or "
            "name a base with its digest in image.base"
        ) from error
