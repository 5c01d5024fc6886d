"""A base image made of a distribution's own packages, for where no registry is reachable.

It is of this machine's release where images.toml knows it, so that what was compiled here finds its C library there.
mmdebstrap downloads through this machine's apt, so its mirrors, proxies and keys are used, and gives the same bytes
for the same packages, to root as to a user in a namespace of his own. A finished base lies in the cache under the
digest of what it was asked to hold, and stays as it is until that folder is deleted: then the packages of that day are
taken.
"""

import os
import platform
import shutil
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pipeline import digests, oci, processes
from pipeline.errors import BuildError, RequirementError
from pipeline.images import cache, rootless
from pipeline.images.manifest import Debootstrap

REMEDY = "apt-get install mmdebstrap, or name a base image that can be pulled in image.base"

OPTIONS = (
    "--variant=essential",
    "--format=tar",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
)
COMPILE = (
    # Byte code that is checked against time stamps would be stale: every file of an image has the time 0. Python is
    # called by its version, so that a release with another one than images.toml says makes no image.
    '--customize-hook=find "$1/usr/lib" -name __pycache__ -prune -exec rm -rf {} +',
    '--customize-hook=PYTHONHASHSEED=0 chroot "$1" python{python} -m compileall -q --invalidation-mode unchecked-hash'
    " /usr/lib/python3 /usr/lib/python{python} >&2",
)
CLEAN = (
    # What names this machine, its mirrors, or the day.
    '--customize-hook=rm -rf "$1"/etc/apt/sources.list* "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/etc/machine-id'
    ' "$1"/var/log/* "$1"/var/cache/* "$1"/var/lib/apt'
)
SPARED = "usrmerge libfile-find-rule-perl libnumber-compare-perl libtext-glob-perl perl perl-modules-5* libperl5*"
"""Only usrmerge needs Perl, a third of a base that has it, and it has done its work when the base is made;
usr-is-merged replaces it."""
PURGE = (
    '--customize-hook=chroot "$1" sh -c \'spared=$(dpkg-query --show --showformat "\\${Package} " '
    + " ".join(f'"{name}"' for name in SPARED.split())
    + ' 2>/dev/null); [ -z "$spared" ] || dpkg --purge $spared\' >&2'
)
COMPONENTS = {"debian": ("main",), "ubuntu": ("main", "universe")}
"""Components of a distribution's archive that hold the packages; pip is in Ubuntu's second."""
SOURCES = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"

LAYOUT = 2
"""Raise when the same packages are made into another image."""


def missing() -> str | None:
    """Say what this machine lacks for it, or None."""
    if shutil.which("mmdebstrap") is None:
        return "mmdebstrap is not installed"
    return rootless.lack("mmdebstrap")


def codename() -> str:
    """Return the codename of this machine's release: Ubuntu's for what is made of Ubuntu, '' for what has none."""
    try:
        here = platform.freedesktop_os_release()
    except OSError:
        return ""
    return here.get("UBUNTU_CODENAME") or here.get("VERSION_CODENAME", "")


def suite(wanted: Debootstrap, pythons: Collection[str]) -> str:
    """Return the release to take: this machine's own, else the default, else any whose Python is among `pythons`.

    RequirementError when there is none.
    """
    for name in (codename(), wanted.suite, *wanted.suites):
        if name in wanted.suites and wanted.suites[name].python in pythons:
            return name
    known = ", ".join(f"{name} has {one.python}" for name, one in wanted.suites.items())
    raise RequirementError(f"no base image: no release has Python {' or '.join(sorted(pythons))} ({known})")


def layout(wanted: Debootstrap, name: str, kind: Literal["runtime", "build"]) -> oci.Layout:
    """Return the base, making it if it is not there yet: some minutes. RequirementError where that cannot be done."""
    if (lack := missing()) is not None:
        raise RequirementError(f"no base image: {lack}; {REMEDY}")
    release = wanted.suites[name]
    compiled = tuple(hook.replace("{python}", release.python) for hook in COMPILE)
    hooks = (*((PURGE,) if kind == "runtime" else ()), *compiled, CLEAN)
    components = ",".join(COMPONENTS[release.distribution])
    packages = f"--include={','.join(getattr(wanted, kind))}"
    command = ["mmdebstrap", *OPTIONS, *hooks, f"--components={components}", packages, name]
    key = digests.of_value([LAYOUT, command, platform.machine()])[:16]
    folder = cache.folder(f"base-{kind}-{key}", lambda into: _make(command, sources(release.distribution, name), into))
    return oci.Layout.open(folder)


def sources(distribution: Literal["debian", "ubuntu"], name: str) -> str:
    """Return the lines of apt for a release where this machine has its mirrors, '' for those that mmdebstrap knows.

    Lines of other publishers, who use the same codenames, are told by their archive's origin.
    """
    try:
        asked = ["apt-get", "indextargets", "--format", SOURCES, "Created-By: Packages"]
        printed = processes.run(asked, what="apt-get indextargets")
    except (BuildError, RequirementError):  # no apt here, or none set up
        return ""
    keys = Path(f"/usr/share/keyrings/{distribution}-archive-keyring.gpg")
    trust = f"[signed-by={keys}] " if keys.exists() else ""
    lines = set()
    for line in printed.splitlines():
        origin, address, release, component = line.split("|")
        of_release = release in (name, f"{name}-updates", f"{name}-security")
        if origin.lower() == distribution and of_release and component in COMPONENTS[distribution]:
            lines.add(f"deb {trust}{address} {release} {component}")
    return "".join(f"{line}\n" for line in sorted(lines)) if any(f" {name} main" in line for line in lines) else ""


def _make(command: list[str], mirrors: str, folder: Path) -> None:
    made = oci.Layout.create(folder)
    mode = "--mode=root" if os.geteuid() == 0 else "--mode=unshare"
    with TemporaryDirectory(dir=folder) as scratch:
        tar, list_ = Path(scratch) / "root.tar", Path(scratch) / "sources.list"
        list_.write_text(mirrors, encoding="utf-8")
        asked: list[str | Path] = [command[0], mode, *command[1:], tar, *([list_] if mirrors else [])]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "0"}
        processes.run(asked, what="making a base image of the distribution's packages", env=environment)
        layer = made.add_file(tar, oci.LAYER)
    config = {
        **oci.PLATFORMS[platform.machine()],
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["python3"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        "history": [{"created_by": " ".join(command)}],  # buildah wants as many as there are layers
    }
    made.finish(config, [layer], {})
