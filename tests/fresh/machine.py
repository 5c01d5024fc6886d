"""A root file system that runs beside this machine's own: its mounts and processes apart, its network the same."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fresh import settings
from tests.fresh.distributions import CACHE, USER, USER_ID

ENTER = """
set -e
root=$1; user=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done; shift
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
if [ -d /sys/fs/cgroup/unified ]; then mount -t cgroup2 none "$root/sys/fs/cgroup"; fi
mount --rbind /dev "$root/dev"
mkdir -p "$root/.outside"; cd "$root"; pivot_root . .outside
exec chroot . sh -ec 'umount -l /.outside; rmdir /.outside; user=$1; shift
    exec setpriv --reuid "$user" --regid "$user" --init-groups "$@"' sh "$user" "$@"
"""
"""Not by chroot alone, in which the kernel makes no user namespaces. With control groups of version 2 alone, as these
distributions boot: crun takes no mixture of both versions."""

PIP_CACHE = Path("/var/cache/pip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One of them, and who works there."""

    root: Path
    user: str
    log: Path

    @property
    def home(self) -> Path:
        """The user's, as the inside names it."""
        lines = (self.root / "etc/passwd").read_text(encoding="utf-8").splitlines()
        return next(Path(home) for name, *_, home, _shell in (line.split(":") for line in lines) if name == self.user)

    def outside(self, path: Path) -> Path:
        """Return where a path of the inside lies for us."""
        return self.root / path.relative_to("/")

    def run(self, *command: str, cwd: Path | None = None) -> int:
        """Run a command there as that user, its output added to the log; return its exit code."""
        binds = [(CACHE / "pip", PIP_CACHE), *((path, path) for path in settings.mounts())]
        for source, target in binds:
            _mountable(source, self.outside(target))
        words = [str(part) for bind in binds for part in bind]
        environment = {
            **settings.environment(), "HOME": str(self.home), "USER": self.user, "LANG": "C.UTF-8",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PIP_CACHE_DIR": str(PIP_CACHE),
        }  # fmt: skip
        inside = ["sh", "-ec", 'cd "$1"; shift; exec "$@"', "sh", str(cwd or self.home), *command]
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh", str(self.root)]
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            id_ = str(USER_ID if self.user != "root" else 0)
            done = subprocess.run(
                [*apart, id_, *words, "--", *inside],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False,
            )  # fmt: skip
        return done.returncode


@contextmanager
def started(archive: Path, name: str, user: str, *, keep: bool) -> Iterator[Machine]:
    """Unpack a root file system, tell it how this machine reaches registries, and remove it at the end."""
    pip_cache = CACHE / "pip"
    pip_cache.mkdir(exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=CACHE))
    root.chmod(0o755)
    log = CACHE / f"{name}-{user}.log"
    log.write_text("", encoding="utf-8")
    machine = Machine(root=root, user=user, log=log)
    try:
        subprocess.run(["tar", "-xpf", archive, "-C", root, "--numeric-owner"], check=True)
        owner = 0 if user == "root" else USER_ID
        subprocess.run(["chown", "-R", f"{owner}:{owner}", pip_cache], check=True)
        _tell(machine)
        yield machine
    finally:
        if not keep:
            shutil.rmtree(root)


def _tell(machine: Machine) -> None:
    for path in (Path("/etc/resolv.conf"), Path("/etc/hosts")):
        machine.outside(path).unlink(missing_ok=True)
        shutil.copy(path, machine.outside(path))
    lines = "".join(f"{line}\n" for line in settings.apt())
    machine.outside(Path("/etc/apt/apt.conf.d/99outside")).write_text(lines, encoding="utf-8")
    for path in settings.pip():
        own = not path.is_relative_to("/etc")
        target = machine.outside(machine.home / ".config/pip/pip.conf" if own else path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    if machine.user == USER:
        subprocess.run(["chown", "-R", f"{USER_ID}:{USER_ID}", machine.outside(machine.home)], check=True)


def _mountable(source: Path, target: Path) -> None:
    """Make what a mount needs at its place."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
