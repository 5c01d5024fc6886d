"""What keeps a user who is not root from making images, by the files that the kernel and the system keep."""

import os
import pwd
import re
from pathlib import Path

import pytest

from pipeline.errors import RequirementError
from pipeline.images import builders, rootless


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is amiss, seen by a user who is not root."""
    for name in ("newuidmap", "newgidmap", "unshare"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\nexit 0\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("me", "x", uid, uid, "", "/", "/bin/sh")))
    for name in ("subuid", "subgid"):
        write(tmp_path / "etc" / name, "other:100000:65536\nme:165536:65536\n")
    write(tmp_path / "proc/user/max_user_namespaces", "90000\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lack(system: Path) -> str | None:
    return rootless.lack("mmdebstrap", system / "proc", system / "etc")


def test_nothing_is_lacking_where_namespaces_are_allowed(system: Path) -> None:
    assert lack(system) is None


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("proc/user/max_user_namespaces", "0\n", "sysctl -w user.max_user_namespaces"),
        ("proc/kernel/unprivileged_userns_clone", "0\n", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("etc/subuid", "other:100000:65536\n", "/etc/subuid has no 65536 ids for me: usermod --add-subuids"),
        ("etc/subgid", "me:100000:1000\n", "/etc/subgid has no 65536 ids for me"),
        ("proc/kernel/apparmor_restrict_unprivileged_userns", "1\n", "AppArmor keeps mmdebstrap from user namespaces"),
        ("bin/unshare", "#!/bin/sh\necho not permitted >&2; exit 1\n", r"can be made here \(not permitted\)"),
    ],
)
def test_what_is_lacking_is_named_with_its_remedy(system: Path, path: str, text: str, expected: str) -> None:
    write(system / path, text)
    found = lack(system)
    assert found is not None
    assert re.search(expected, found), found


def test_programs_with_a_profile_of_apparmors_are_allowed(system: Path) -> None:
    write(system / "proc/kernel/apparmor_restrict_unprivileged_userns", "1\n")
    write(system / "etc/apparmor.d/mmdebstrap", "profile")
    assert lack(system) is None


def test_ids_are_given_by_a_package_that_is_named(system: Path) -> None:
    (system / "bin" / "newuidmap").unlink()
    assert "apt-get install uidmap" in str(lack(system))


def test_root_needs_none_of_it(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(system / "proc/user/max_user_namespaces", "0\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert lack(system) is None


def test_a_user_has_the_number_that_his_namespace_gives_him() -> None:
    whole = "         0          0 4294967295\n"
    mapped = "         0       1001          1\n         1     100000      65536\n"
    assert rootless.inside(10001, whole) == 10001
    assert rootless.inside(110000, mapped) == 10001
    assert rootless.inside(1001, mapped) == 0, "root of a container that a user started is not root outside"


def test_builders_that_cannot_work_here_say_why(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = system / "bin" / "buildah"
    program.write_text('#!/bin/sh\necho \'{"version": "1.28.2"}\'\n')
    program.chmod(0o755)
    monkeypatch.setattr(rootless, "lack", lambda program: None)
    assert builders.find().name == "buildah"
    monkeypatch.setattr(rootless, "lack", lambda program: f"{program} has no ids")
    with pytest.raises(RequirementError, match="nothing here builds images: buildah: buildah has no ids"):
        builders.find()
