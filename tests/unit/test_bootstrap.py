"""What bootstrap.py does before anything is installed: which Python it takes, and what it says is missing."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bootstrap

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
sys.argv = ["assay", "--help"]
import pipeline.__main__
from pipeline.toolchains import llama_cpp
from pipeline.toolchains.llama_cpp import selftest, tiny_model, trial
llama_cpp.load(lambda *line: None)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def _system(monkeypatch: pytest.MonkeyPatch, identity: str, version: str) -> None:
    found = {"ID": identity, "VERSION_ID": version, "PRETTY_NAME": f"{identity} {version}"}
    monkeypatch.setattr(bootstrap, "release", lambda: found)


def test_it_takes_the_pythons_that_the_package_takes() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert declared == f">=3.{bootstrap.OLDEST},<3.{bootstrap.NEWEST + 1}"


def test_a_python_that_starts_is_taken_and_one_that_does_not_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, exit_code in (("python3.13", 127), ("python3.12", 0), ("python3.11", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {exit_code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert bootstrap.supported() == str(tmp_path / "python3.12")


@pytest.mark.parametrize(
    ("identity", "version", "advice"),
    [
        ("debian", "12", "apt-get install python3.11 python3.11-venv python3.11-dev`, then make"),
        ("debian", "13", "apt-get install python3.13 python3.13-venv python3.13-dev`, then make"),
        ("ubuntu", "24.04", "apt-get install python3.12 python3.12-venv python3.12-dev`, then make"),
        ("ubuntu", "22.04", "ubuntu 22.04 brings none"),
    ],
)
def test_an_unsupported_python_names_what_the_distribution_has(
    identity: str, version: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _system(monkeypatch, identity, version)
    monkeypatch.setattr(bootstrap, "NEWEST", sys.version_info.minor - 1)
    (said,) = bootstrap.missing_prerequisites()
    assert advice in said
    assert sys.executable in said


def test_all_that_is_missing_is_named_with_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(bootstrap, "find_spec", lambda _: None)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    python = f"python3.{sys.version_info.minor}"
    *_, command = bootstrap.missing_prerequisites()
    assert re.fullmatch(rf" +(sudo )?apt-get install {python}-venv {python}-dev g\+\+ cmake git", command)


def test_nothing_is_missing_here() -> None:
    assert bootstrap.missing_prerequisites() == []


@pytest.mark.parametrize(
    ("made_of", "asked_for", "enough"),
    [
        ("key gguf,onnx", "gguf,onnx", True),
        ("key gguf,onnx,dev", "gguf,onnx", True),
        ("key gguf,onnx", "gguf,onnx,dev", False),
        ("other gguf,onnx,dev", "gguf,onnx", False),
        (None, "gguf,onnx", False),
    ],
)
def test_an_environment_is_made_again_for_other_pins_or_more_tools(
    made_of: "str | None", asked_for: str, enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = tmp_path / "stamp"
    if made_of is not None:
        stamp.write_text(made_of)
    monkeypatch.setattr(bootstrap, "STAMP", stamp)
    assert bootstrap.up_to_date("key", asked_for) is enough


def test_llama_cpp_is_built_and_tried_with_what_is_installed_first() -> None:
    """The rest of the environment is still being installed then, so that nothing else may be imported."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    known = packages_distributions()
    imported = {canonicalize_name(one) for name in done.stdout.split() for one in known.get(name, ())}
    assert imported - {"assay-pipeline", "llama-cpp-python"} <= closure(bootstrap.TOOLCHAIN) | {"setuptools"}


def closure(names: Iterable[str]) -> set[str]:
    """Return these distributions and all that they need here."""
    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            needs = map(Requirement, requires(name) or ())
            waiting += [
                canonicalize_name(need.name)
                for need in needs
                if need.marker is None or need.marker.evaluate({"extra": ""})
            ]
    return found
