"""Git and DVC repositories of their own, with a flow of one stage that writes the records of a finished run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]

FLOW = {
    "stages": {
        "selection": {
            "cmd": "python -m tests.support.runs",
            "params": [{"run.yaml": ["artifacts"]}],
            "outs": ["measurements", {"selection.json": {"cache": False}}],
            "metrics": [{"metrics.json": {"cache": False}}],
        }
    }
}

WHO = {f"GIT_{role}_{what}": "t@example.invalid" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Artifacts = Mapping[str, Mapping[str, Any]]


class Repository:
    """A checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables: dict[str, str] = {}
        """Environment variables of every command."""

    @classmethod
    def create(cls, folder: Path, artifacts: Artifacts) -> "Repository":
        """Make a repository with a finished and committed run of these artifacts."""
        folder.mkdir()
        made = cls(folder)
        made.run("git", "init", "-q", "-b", "main")
        made.run("dvc", "init", "-q")
        shutil.copytree(ROOT / "ci", folder / "ci")
        (folder / "dvc.yaml").write_text(yaml.safe_dump(FLOW, sort_keys=False))
        (folder / ".gitignore").write_text("/measurements\n/comparison\n/.assay\n")
        made.ask(artifacts)
        made.run("dvc", "repro", "-q")
        made.commit("first run")
        return made

    def clone(self, folder: Path) -> "Repository":
        subprocess.run(["git", "clone", "-q", self.folder, folder], check=True)
        return Repository(folder)

    def ask(self, artifacts: Artifacts) -> None:
        """Write run.yaml, which says what the run makes."""
        (self.folder / "run.yaml").write_text(yaml.safe_dump({"artifacts": artifacts}, sort_keys=False))

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def type(self, script: str) -> subprocess.CompletedProcess[str]:
        """Type commands into a fresh shell there: of the environment's programs it knows none until it is activated."""
        env = {"HOME": str(self.folder), "LANG": "C.UTF-8", "PATH": SYSTEM_PATH, "PYTHONPATH": str(ROOT)}
        command = ["bash", "--norc", "-euxc", script]
        env |= {"NO_PROXY": "*", **WHO, **self.variables}
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command there, with the tools of this environment and nobody's settings of git."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "NO_PROXY": "*", **WHO, **self.variables}
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done
