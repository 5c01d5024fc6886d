"""A base image made of Debian's own packages, for where no registry is reachable.

mmdebstrap downloads through this machine's apt, so its mirrors, proxies and keys are used, and gives the same bytes
for the same packages. A finished base lies in the cache under the digest of what it was asked to hold, and stays as it
is until that folder is deleted: then the packages of that day are taken.
"""

import os
import platform
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pipeline import digests, oci, processes
from pipeline.errors import RequirementError
from pipeline.images import cache
from pipeline.images.manifest import Debootstrap

REMEDY = "apt-get install mmdebstrap, and run as root; or name a base image that can be pulled in image.base"

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""OCI's names of what uname calls a machine."""

OPTIONS = (
    "--mode=root",
    "--variant=essential",
    "--format=tar",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
)
HOOKS = (
    # Byte code that is checked against time stamps would be stale: every file of an image has the time 0.
    '--customize-hook=find "$1/usr/lib" -name __pycache__ -prune -exec rm -rf {} +',
    '--customize-hook=PYTHONHASHSEED=0 chroot "$1" python3 -m compileall -q --invalidation-mode unchecked-hash'
    " /usr/lib/python3 /usr/lib/python3.11 >&2",
    # What names this machine, its mirrors, or the day.
    '--customize-hook=rm -rf "$1"/etc/apt/sources.list* "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/etc/machine-id'
    ' "$1"/var/log/* "$1"/var/cache/* "$1"/var/lib/apt',
)
SPARED = "usrmerge libfile-find-rule-perl libnumber-compare-perl libtext-glob-perl perl perl-modules-5.36 libperl5.36"
"""Only usrmerge needs Perl, a third of the base, and it has done its work when the base is made; usr-is-merged replaces
it."""
LAYOUT = 1
"""Raise when the same packages are made into another image."""


def missing() -> str | None:
    """Say what this machine lacks for it, or None."""
    if shutil.which("mmdebstrap") is None:
        return "mmdebstrap is not installed"
    return None if os.geteuid() == 0 else "mmdebstrap needs root here"


def layout(wanted: Debootstrap, kind: Literal["runtime", "build"]) -> oci.Layout:
    """Return the base, making it if it is not there yet: about a minute. RequirementError where that cannot be done."""
    if (lack := missing()) is not None:
        raise RequirementError(f"no base image: {lack}; {REMEDY}")
    packages = getattr(wanted, kind)
    purge = (f'--customize-hook=chroot "$1" dpkg --purge {SPARED} >&2',) if kind == "runtime" else ()
    command = ["mmdebstrap", *OPTIONS, *purge, *HOOKS, f"--include={','.join(packages)}", wanted.suite]
    key = digests.of_value([LAYOUT, command, platform.machine()])[:16]
    folder = cache.folder(f"base-{kind}-{key}", lambda into: _make(command, into))
    return oci.Layout.open(folder)


def _make(command: list[str], folder: Path) -> None:
    made = oci.Layout.create(folder)
    with TemporaryDirectory(dir=folder) as scratch:
        tar = Path(scratch) / "root.tar"
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "0"}
        processes.run([*command, tar], what="making a base image of Debian packages", env=environment)
        layer = made.add_file(tar, oci.LAYER)
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["python3"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        "history": [{"created_by": " ".join(command)}],  # buildah wants as many as there are layers
    }
    made.finish(config, [layer], {})
