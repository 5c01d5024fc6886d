"""Whether a user who is not root can make root file systems and images here, and what keeps him from it.

Both need a user namespace in which he is root, and several user ids of his own in it (user_namespaces(7), subuid(5)).
"""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

IDS = 65536
"""How many a root file system and mmdebstrap ask for."""

SETTINGS = (
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
)
"""Settings of the kernel, each with the value that forbids namespaces and what allows them; the second is Debian's
own."""

APPARMOR = "kernel/apparmor_restrict_unprivileged_userns"
"""Ubuntu's: only programs with a profile that says so may use namespaces."""


def lack(program: str, proc: Path = Path("/proc/sys"), etc: Path = Path("/etc")) -> str | None:
    """Say what keeps a program from working here for who is not root, with what would help; None where nothing does."""
    if os.geteuid() == 0:
        return None
    for name, forbidding, remedy in SETTINGS:
        if _read(proc / name) == forbidding:
            return f"the kernel gives user namespaces to root only ({name.replace('/', '.')} is {forbidding}): {remedy}"
    if not shutil.which("newuidmap") or not shutil.which("newgidmap"):
        return "newuidmap, which gives a user namespace its ids, is not installed: apt-get install uidmap"
    user = pwd.getpwuid(os.geteuid()).pw_name
    for file in ("subuid", "subgid"):
        if _ids(etc / file, user) < IDS:
            remedy = f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
            return f"/etc/{file} has no {IDS} ids for {user}: {remedy}"
    if _read(proc / APPARMOR) == "1" and not (etc / "apparmor.d" / program).exists():
        return f"AppArmor keeps {program} from user namespaces: sysctl -w {APPARMOR.replace('/', '.')}=0"
    probe = subprocess.run(["unshare", "--user", "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        return f"no user namespace can be made here ({probe.stderr.strip()}): allow them to this container, or be root"
    return None


def inside(user: int, id_map: str) -> int:
    """Return what a user namespace calls a user of this one by its uid_map."""
    for line in id_map.splitlines():
        inside, outside, count = map(int, line.split())
        if outside <= user < outside + count:
            return inside + user - outside
    return user


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:  # a kernel that does not have it
        return ""


def _ids(path: Path, user: str) -> int:
    """Return the largest number of ids in a row that a user has."""
    fields = (line.split(":") for line in _read(path).splitlines())
    found = [int(each[2]) for each in fields if len(each) == 3 and each[0] in (user, str(os.geteuid()))]
    return max(found, default=0)
