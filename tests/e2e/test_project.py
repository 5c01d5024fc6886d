"""A project of its own with Assay as an installed package: made, run, asked, brought to another version."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from pipeline import processes
from pipeline.commands import project
from pipeline.errors import ParamsError
from pipeline.records import Selection
from tests.e2e.workspace import ROOT

SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WHO = {f"GIT_{role}_{what}": "t@example.invalid" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


class Installed:
    """An environment with the wheel of this repository; the packages that it needs are those of the tests' own."""

    def __init__(self, folder: Path) -> None:
        wheels = folder / "wheels"
        pip = [sys.executable, "-m", "pip"]
        subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT], check=True)
        venv.create(folder / "venv", symlinks=True)
        self.programs = folder / "venv" / "bin"
        (wheel,) = wheels.glob("*.whl")
        subprocess.run([*pip, "--python", self.programs / "python", "install", "-q", "--no-deps", wheel], check=True)
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        # A folder that is named so is searched after the environment's own, and its own .pth files do not count.
        (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, folder: Path, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a program of the environment, which is not activated."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        env: Mapping[str, str] = {**kept, "PATH": SYSTEM, **WHO}
        program = self.programs / command[0]
        words = [str(program) if program.exists() else command[0], *command[1:]]
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            pytest.fail(f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def repro(self, folder: Path, *targets: str) -> list[str]:
        """Run `dvc repro`; return the stages that ran beside `inputs`."""
        lines = self.run(folder, "python", "-m", "dvc", "repro", *targets).stdout.splitlines()
        ran = [line.split("'")[1] for line in lines if line.startswith("Running stage '")]
        return [stage for stage in ran if stage != "inputs"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def made(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project for the demo's checkpoint."""
    folder = tmp_path_factory.mktemp("projects") / "My Model"
    told = installed.run(folder.parent, "assay", "init", folder.name, "--checkpoint", str(ROOT / "models/demo")).stdout
    assert "dvc repro" in told
    return folder


def test_a_project_has_this_repositorys_own_files(made: Path) -> None:
    for name in ("dvc.yaml", "constraints.txt", ".dvcignore", ".dvc/config", *project.CI):
        assert (made / name).read_bytes() == (ROOT / name).read_bytes(), name
    assert os.access(made / "ci/compare.sh", os.X_OK)
    ours, theirs = (yaml.safe_load((folder / "params.yaml").read_text()) for folder in (ROOT, made))
    ours["checkpoint"]["source"], ours["image"]["name"] = str(ROOT / "models/demo"), "my-model"
    assert theirs == ours
    assert "# or hf://org/name" in (made / "params.yaml").read_text(), "comments stay"
    assert "/artifacts/" in (made / ".gitignore").read_text()


def test_a_project_runs_on_the_installed_package_alone(installed: Installed, made: Path) -> None:
    path = made / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["corpus"] |= {"window_tokens": 128}
    params["corpus"]["calibration"]["windows"], params["corpus"]["evaluation"]["windows"] = 8, 12
    params["greedy"] = {"prompts": 2, "prompt_tokens": 16, "output_tokens": 4}
    params["latency"] |= {"prompt_tokens": 32, "output_tokens": 8}
    params["serving"] |= {"concurrency": [1], "prompt_tokens": 16, "output_tokens": 4}
    params["selection"] |= {"concurrency": 1, "constraints": {}}
    params["tasks"] = {"names": ["cloze"], "limit": 4}
    params["artifacts"] = {name: params["artifacts"][name] for name in ("gguf-q8_0",)}
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    installed.run(made, "git", "add", "-A")
    installed.run(made, "git", "commit", "-qm", "start")
    assert "gguf-q8_0" in installed.run(made, "assay", "plan").stdout
    assert "latency@gguf-q8_0" in installed.repro(made, "selection")
    assert Selection.load(made / "selection.json").winner == "gguf-q8_0"
    assert installed.repro(made, "selection") == []
    assert "gguf-q8_0 *" in installed.run(made, "assay", "ranking").stdout
    installed.run(made, "git", "add", "-A")
    installed.run(made, "git", "commit", "-qm", "a run")


def test_an_upgrade_replaces_what_is_assays_and_says_what_will_run(installed: Installed, made: Path) -> None:
    assert "of this version already" in installed.run(made, "assay", "upgrade").stdout
    packages = made / "requirements.txt"
    now = packages.read_text()
    packages.write_text("assay-pipeline[all]==0.0.1\nours>=1\n")
    installed.run(made, "git", "commit", "-qam", "an older version, and a package of ours")
    assert "replaced: requirements.txt" in installed.run(made, "assay", "upgrade").stdout
    assert packages.read_text() == f"assay-pipeline[all]=={now.partition('==')[2].strip()}\nours>=1\n"
    installed.run(made, "git", "commit", "-qam", "upgraded")
    flow = made / "dvc.yaml"
    flow.write_text(flow.read_text().replace("        - inputs/code/quality-${item.backend}.json\n", ""))
    refused = installed.run(made, "assay", "upgrade", check=False)
    assert refused.returncode == ParamsError.exit_code
    assert "dvc.yaml: has changes that are not committed" in refused.stderr
    installed.run(made, "python", "-m", "dvc", "commit", "--force", "quality@gguf-q8_0")
    installed.run(made, "git", "commit", "-qam", "as an older version had it")
    told = installed.run(made, "assay", "upgrade").stdout
    assert "replaced: dvc.yaml" in told
    assert "quality@gguf-q8_0:" in told
    assert flow.read_bytes() == (ROOT / "dvc.yaml").read_bytes()


def test_a_project_within_a_repository_leaves_its_ci_alone(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    project.init(tmp_path / "one", "hf://org/name", "v1")
    project.init(tmp_path / "two", "hf://org/other", None)
    params = yaml.safe_load((tmp_path / "one/params.yaml").read_text())
    assert params["checkpoint"] == {"source": "hf://org/name", "revision": "v1"}
    assert not (tmp_path / "one/ci").exists()
    assert (tmp_path / "two/.dvc").is_dir()
    assert not (tmp_path / "one/.git").exists()


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("hf://name", "not of the form hf://org/name"),
        ("hf://../..", "not of the form hf://org/name"),
        ("org/name", "is no folder with a config.json; for the Hub, say hf://org/name"),
        ("https://huggingface.co/org/name/", "for the Hub, say hf://org/name"),
        ("no where", "no folder with a config.json; give one"),
    ],
)
def test_what_is_no_checkpoint_makes_no_project(tmp_path: Path, checkpoint: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        project.init(tmp_path / "project", checkpoint, None)
    assert not (tmp_path / "project").exists()


def test_a_project_is_not_overwritten(tmp_path: Path) -> None:
    project.init(tmp_path, "hf://org/name", None)
    params = tmp_path / "params.yaml"
    params.write_text("changed\n")
    with pytest.raises(ParamsError, match="is a project already; `assay upgrade`"):
        project.init(tmp_path, "hf://org/other", None)
    assert params.read_text() == "changed\n"


def test_what_is_somebody_elses_stays(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    ours = {".gitignore": "/secret\n", ".dvcignore": "data\n", "ci/setup.sh": "#!/bin/sh\n", "README.md": "# Ours\n"}
    for name, text in ours.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    project.init(tmp_path, "hf://org/name", None)
    for name in (".dvcignore", "ci/setup.sh", "README.md"):
        assert (tmp_path / name).read_text() == ours[name]
    assert not (tmp_path / "ci/compare.sh").exists(), "all of them or none"
    ignored = (tmp_path / ".gitignore").read_text()
    assert ignored.startswith("/secret\n")
    assert "/artifacts/" in ignored
    (tmp_path / "other").mkdir()
    (tmp_path / "other/requirements.txt").write_text("flask\n")
    with pytest.raises(ParamsError, match=r"has a requirements\.txt that is not Assay's"):
        project.init(tmp_path / "other", "hf://org/name", None)


def test_an_interrupted_init_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*words: object, **more: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(processes, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            project.init(tmp_path / "project", "hf://org/name", None)
    assert not (tmp_path / "project/dvc.yaml").exists()
    project.init(tmp_path / "project", "hf://org/name", None)
    assert (tmp_path / "project/dvc.yaml").exists()
    config = subprocess.run(["git", "show", ":.dvc/config"], cwd=tmp_path / "project", capture_output=True, check=True)
    assert config.stdout == (ROOT / ".dvc/config").read_bytes(), "what Git has of it is not empty"


def test_weights_within_a_project_are_not_committed(tmp_path: Path) -> None:
    (tmp_path / "project/model").mkdir(parents=True)
    (tmp_path / "project/model/config.json").write_text("{}")
    project.init(tmp_path / "project", str(tmp_path / "project/model"), None)
    assert yaml.safe_load((tmp_path / "project/params.yaml").read_text())["checkpoint"]["source"] == "model"
    assert "/model/\n" in (tmp_path / "project/.gitignore").read_text()
