"""containers/images.toml: base images by tag and digest."""

import re
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipeline.errors import ParamsError
from pipeline.records import Record

ROOT = Path(__file__).parents[2]
"""The repository's root: what goes into an image lies there, as Python packages and as files beside them."""

PATH = ROOT / "containers" / "images.toml"


def parts(engine: str) -> Path:
    """Return the folder with an engine's Containerfile and the packages of its image."""
    return ROOT / "containers" / "engines" / engine / "image"


class Pin(Record):
    """A public image."""

    image: str
    """Registry, repository and tag."""
    digest: str | None = None
    """None until it was looked up."""
    python: str
    """The image's Python, which wheels are chosen for."""


class Suite(Record):
    """One release of a distribution."""

    distribution: Literal["debian", "ubuntu"]
    python: str
    """The version of its package python3."""


class Debootstrap(Record):
    """A distribution's packages that make up a base image."""

    suite: str
    """Codename of the release that is taken on a machine of none of `suites`."""
    runtime: tuple[str, ...]
    build: tuple[str, ...]
    suites: dict[str, Suite]
    """By codename."""


class Images(Record):
    """All of images.toml."""

    runtime: Pin
    build: Pin
    vllm: Pin | None = None
    tensorrt_llm: Pin | None = None
    debootstrap: Debootstrap

    def public(self, engine: str) -> Pin | None:
        """Return the image that an engine's runtime comes as, None for one that is installed on `runtime`."""
        return {"vllm": self.vllm, "tensorrt_llm": self.tensorrt_llm}.get(engine)


def load(path: Path = PATH) -> Images:
    """Read the file; ParamsError when it is none of ours."""
    try:
        return Images.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise ParamsError(f"{path}: {error}") from error


def write_digest(section: str, digest: str, path: Path = PATH) -> None:
    """Put a digest under a section's image, and leave every other line as it is."""
    text = path.read_text(encoding="utf-8")
    pattern = rf'(^\[{section}\][^\[]*?^image = "[^"]+"\n)(digest = "[^"]*"\n)?'
    changed, count = re.subn(pattern, rf'\g<1>digest = "{digest}"\n', text, flags=re.MULTILINE)
    if count != 1:
        raise ParamsError(f"{path}: has no [{section}] with an image")
    path.write_text(changed, encoding="utf-8")
