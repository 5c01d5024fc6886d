"""An environment is there whole or not at all; real venv and pip, with a wheel of a few bytes as the only index."""

import os
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import BuildError, RequirementError, StorageError
from pipeline.toolchains import environments

TINY = "VALUE = 42\n"


def wheel(folder: Path, name: str, *, body: str = TINY, requires: str = "") -> None:
    """Write a wheel of one module, and a program that prints its value."""
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}"
    files = {
        f"{name}.py": body + "def main(): print(VALUE)\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, content)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip's own configuration says that wheels are: nothing else tells."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "tiny")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def requirements(index: Path, tmp_path: Path) -> Path:
    path = tmp_path / "requirements.txt"
    path.write_text("# what it is for\ntiny==1.0\n")
    return path


def script(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "script.py"
    path.write_text(body)
    return path


def folders(index: Path) -> list[str]:
    store = index.parent / "cache" / "assay" / "toolchains"
    return sorted(path.name for path in store.iterdir() if path.is_dir() and not path.is_symlink())


def test_an_environment_is_made_once_and_found_again(requirements: Path, index: Path) -> None:
    made = environments.environment("tool", requirements)
    (index / "tiny-1.0-py3-none-any.whl").unlink()
    assert environments.environment("tool", requirements) == made
    assert made.version("tiny") == "1.0"
    assert subprocess.check_output([made.tool("tiny")], text=True) == "42\n"
    requirements.write_text("tiny==1.0  \n# another comment\n")
    assert environments.environment("tool", requirements) == made
    assert folders(index) == [made.root.name]


def test_a_script_takes_and_gives_json_and_sees_only_its_environment(
    requirements: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    made = environments.environment("tool", requirements)
    body = """
import importlib.util, sys, tiny
def run(job):
    own = [name for name in ("pipeline", "numpy", "store", "pip") if importlib.util.find_spec(name)]
    return {"sum": job["number"] + tiny.VALUE, "own": own, "hash": hash("a"), "prefix": sys.prefix}
"""
    found = environments.call(made, script(tmp_path, body), {"number": 1}, what="adding")
    assert found == {"sum": 43, "own": [], "hash": found["hash"], "prefix": str(made.root)}
    assert environments.call(made, tmp_path / "script.py", {"number": 1}, what="adding") == found


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def run(job): raise ValueError('no such layer')", r"adding exited with 1.*\n.*ValueError: no such layer"),
        ("import os\ndef run(job): os.kill(os.getpid(), 9)", "adding was killed by SIGKILL"),
        ("import os\ndef run(job): os._exit(0)", "without a result"),
    ],
    ids=["raises", "killed", "ends"],
)
def test_an_error_in_a_script_arrives_with_its_last_lines(
    body: str, words: str, requirements: Path, tmp_path: Path
) -> None:
    made = environments.environment("tool", requirements)
    with pytest.raises(BuildError, match=f"(?s){words}"):
        environments.call(made, script(tmp_path, body), {}, what="adding")


def test_a_killed_build_is_not_taken_for_a_finished_one(requirements: Path, index: Path) -> None:
    """SIGKILL while pip waits for an index that never answers; pip lives on, and may write where nobody else is."""
    code = "import sys; from pathlib import Path; from pipeline.toolchains import environments\n"
    code += "environments.environment('tool', Path(sys.argv[1]))"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = {name: value for name, value in os.environ.items() if name != "PIP_NO_INDEX"}
        env |= {"PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/", "PIP_RETRIES": "0"}
        builder = subprocess.Popen([sys.executable, "-c", code, requirements], env=env)
        silent.accept()[0].close()
        builder.kill()
        builder.wait()
    (left,) = folders(index)
    made = environments.environment("tool", requirements)
    assert made.version("tiny") == "1.0"
    assert folders(index) == [made.root.name] != [left]


def test_two_at_once_build_once(requirements: Path, index: Path) -> None:
    """flock is per open file, so threads show it, too."""
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(environments.environment("tool", requirements).root))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert folders(index) == [found[0].name] == [found[1].name]


def test_an_environment_without_its_interpreter_is_made_again(requirements: Path, index: Path) -> None:
    made = environments.environment("tool", requirements)
    made.python.unlink()
    again = environments.environment("tool", requirements)
    assert again.python.exists()
    assert folders(index) == [again.root.name]


def test_other_pins_are_another_environment(requirements: Path, index: Path, tmp_path: Path) -> None:
    wheel(index, "other")
    more = tmp_path / "more.txt"
    more.write_text("tiny==1.0\nother==1.0\n")
    assert environments.environment("tool", requirements).root != environments.environment("tool", more).root


def test_what_pip_cannot_find_is_told_in_its_words(requirements: Path, index: Path) -> None:
    (index / "tiny-1.0-py3-none-any.whl").unlink()
    with pytest.raises(BuildError, match=r"(?s)installing tool exited.*tiny==1\.0.*pip config list"):
        environments.environment("tool", requirements)
    assert folders(index) == []


def test_a_dead_index_is_told_in_pips_words(requirements: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(BuildError, match=r"(?s)Connection refused.*pip config list"):
        environments.environment("tool", requirements)


def test_pins_that_disagree_are_refused(requirements: Path, index: Path) -> None:
    wheel(index, "tiny", requires="Requires-Dist: absent\n")
    with pytest.raises(BuildError, match="absent"):
        environments.environment("tool", requirements)
    assert folders(index) == []


def test_a_full_disk_is_told_before_the_build(requirements: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "FREE_BYTES", 2**60)
    with pytest.raises(StorageError, match="MiB free, building tool needs"):
        environments.environment("tool", requirements)


@pytest.mark.parametrize("line", ["tiny", "tiny>=1.0", "https://example.org/tiny.whl", "-r other.txt"])
def test_a_requirement_that_is_not_pinned_is_refused(line: str, requirements: Path) -> None:
    requirements.write_text(f"{line}\n")
    with pytest.raises(RequirementError, match="not pinned"):
        environments.environment("tool", requirements)


def test_a_missing_interpreter_is_named_with_its_remedy(requirements: Path, tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match=r"apt-get install python3\.1"):
        environments.interpreter("3.1", "3.2")
    with pytest.raises(RequirementError, match="is not there"):
        environments.environment("tool", requirements, tmp_path / "python3.1")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert environments.interpreter("3.1", version).name == f"python{version}"
