"""A minimal root file system of each distribution, with what the README names and one user who is not root."""

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline import paths
from tests.fresh import settings

PACKAGES = ("python3", "python3-venv", "python3-dev", "make", "g++", "cmake", "git", "mmdebstrap", "buildah", "podman")
"""What the README names, with what apt recommends beside it."""

USER, USER_ID = "somebody", 2000
HOME = Path("/home") / USER

CACHE = paths.user_cache() / "fresh"
"""Root file systems, pip's cache and the logs. Delete it to take the packages of today."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """One release, by the name that its mirrors have for it."""

    suite: str
    title: str
    components: str = "main"
    keyring: Path = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    mirror: str = "http://deb.debian.org/debian"
    updates: tuple[str, ...] = ()
    """Suites beside it that hold its corrections."""

    @property
    def sources(self) -> str:
        """Lines for apt. A mirror whose keys this machine lacks is trusted: what is made of it runs for a test only."""
        trust = f"signed-by={self.keyring}" if self.keyring.exists() else "trusted=yes"
        suites = (self.suite, *self.updates)
        return "".join(f"deb [{trust}] {self.mirror} {suite} {self.components}\n" for suite in suites)


def _ubuntu(suite: str, title: str) -> Distribution:
    return Distribution(
        suite=suite, title=title, components="main universe", mirror="http://archive.ubuntu.com/ubuntu",
        keyring=Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg"), updates=(f"{suite}-updates",),
    )  # fmt: skip


DISTRIBUTIONS = {
    "debian-13": Distribution(suite="trixie", title="Debian 13"),
    "debian-12": Distribution(suite="bookworm", title="Debian 12"),
    "ubuntu-24.04": _ubuntu("noble", "Ubuntu 24.04"),
    "ubuntu-26.04": _ubuntu("resolute", "Ubuntu 26.04"),
}


def root(distribution: Distribution) -> Path:
    """Return an archive of its root file system, made now if it was not made before: some minutes."""
    user = f"--user-group --create-home --uid {USER_ID} --shell /bin/bash {USER}"
    command = [
        *("mmdebstrap", "--variant=minbase", "--format=tar", f"--include={','.join(PACKAGES)}"),
        *("--aptopt=APT::Install-Recommends true", f'--customize-hook=chroot "$1" useradd {user}'),
        distribution.suite,
    ]
    key = hashlib.sha256(repr((command, distribution.updates)).encode()).hexdigest()[:12]
    archive = CACHE / f"{distribution.suite}-{key}.tar"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = archive.with_suffix(".partial")
        apt = [f"--aptopt={line}" for line in settings.apt()]
        subprocess.run(
            [*command[:-1], *apt, command[-1], partial, "-"], input=distribution.sources, text=True, check=True
        )
        partial.rename(archive)
    return archive
