"""What an installation does to the environment that it goes into: assay.pth, and what a wheel carries."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import bootstrap

ROOT = Path(__file__).parents[2]
SYSTEM = "/usr/bin:/bin"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds assay.pth alone."""
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, symlinks=True)
    (site,) = root.glob("lib/python3.*/site-packages")
    (site / "assay.pth").write_text((ROOT / "assay.pth").read_text())
    return root


def _path(python: Path, variables: dict[str, str], script: str = "import os; print(os.environ['PATH'])") -> str:
    done = subprocess.run([python, "-c", script], env=variables, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.strip()


def test_programs_of_the_environment_come_first_once(environment: Path) -> None:
    programs = environment / "bin"
    assert _path(programs / "python", {"PATH": SYSTEM}) == f"{programs}:{SYSTEM}"
    assert _path(programs / "python", {"PATH": f"{programs}:{SYSTEM}"}) == f"{programs}:{SYSTEM}"
    assert _path(programs / "python", {}) == f"{programs}:{os.defpath}"
    shell = "import subprocess; subprocess.run('python -c \"import sys; print(sys.prefix)\"', shell=True)"
    assert _path(programs / "python", {"PATH": SYSTEM}, shell) == str(environment)


def test_outside_an_environment_path_stays(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setenv("PATH", SYSTEM)
    exec((ROOT / "assay.pth").read_text())
    assert os.environ["PATH"] == SYSTEM


def test_this_environment_was_installed_with_it() -> None:
    programs = Path(sys.executable).parent
    assert _path(Path(sys.executable), {"PATH": SYSTEM}).split(os.pathsep)[0] == str(programs)


def test_modules_are_compiled_once_whatever_the_variables_say(tmp_path: Path) -> None:
    """Where packages are installed without bytecode, each process would compile them again."""
    venv.create(tmp_path, symlinks=True)
    (site,) = tmp_path.glob("lib/python3.*/site-packages")
    (site / "bytecode.pth").write_text(bootstrap.BYTECODE)
    (site / "ours.py").write_text("")
    assert _path(tmp_path / "bin" / "python", {"PYTHONDONTWRITEBYTECODE": "1"}, "import ours") == ""
    assert list((site / "__pycache__").glob("ours.*.pyc"))


def test_an_interpreter_without_the_packages_says_so(tmp_path: Path) -> None:
    venv.create(tmp_path, symlinks=True)
    python = tmp_path / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pipeline", "inputs"],
        cwd=ROOT,
        env={"PATH": SYSTEM},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert str(python) in line
    assert "activate" in line or "make setup" in line
    assert done.returncode == 1


def test_a_wheel_carries_what_the_packages_read(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "assay = pipeline.__main__:main" in opened.read(entry).decode()
    tracked = subprocess.run(
        ["git", "ls-files", "pipeline", "evals", "containers"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {*tracked.stdout.split(), "assay.pth"} <= names
