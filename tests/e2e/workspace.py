"""A repository of its own for a test: this one's files, with small params."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.records import Verification

ROOT = Path(__file__).parents[2]
FILES = (
    *("pipeline", "evals", "containers", "models", "profiles", "params.yaml", "dvc.yaml", "constraints.txt"),
    *(".dvcignore", ".dvc/config", ".gitignore"),
)


def program(name: str) -> str:
    """Find a program of the tests' own environment, which a workspace has not on PATH; another one is left to PATH."""
    here = Path(sys.executable).with_name(name)
    return str(here) if here.exists() else name


class Workspace:
    """One such repository, and the commands that people run in it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.environment = environment

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        started = [program(command[0]), *command[1:]]
        done = subprocess.run(started, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    @property
    def env(self) -> dict[str, str]:
        # Nothing of the environment is on PATH: the stages say `python`, and find the one that `dvc` was started with.
        programs = str(Path(sys.executable).parent)
        path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != programs)
        return {**os.environ, "PATH": path, "PYTHONPATH": str(self.folder), **self.environment}

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro` and return the stages that ran, `inputs` left out: it always runs."""
        output = self.run("dvc", "repro", *arguments).stdout
        lines = [line for line in output.splitlines() if line.startswith("Running stage '")]
        return [stage for line in lines if (stage := line.split("'")[1]) != "inputs"]

    def params(self, **sections: Any) -> None:
        """Write sections of params.yaml anew."""
        path = self.folder / "params.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections, sort_keys=False))

    def read(self, path: str) -> dict[str, object]:
        loaded: dict[str, object] = json.loads((self.folder / path).read_text())
        return loaded

    def read_text(self, path: str) -> str:
        return (self.folder / path).read_text()

    @property
    def green(self) -> bool:
        return Verification.load(self.folder / "verification.json").green

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", "commit", "-qm", message)


def made(folder: Path, artifacts: Sequence[str], *, profile: str | None = None) -> Workspace:
    """Fill a folder with this repository's files, `artifacts` only, and texts of a few windows."""
    for name in FILES:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    workspace = Workspace(folder)
    if profile is not None:
        workspace.run("python", "-m", "pipeline", "profile", profile)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["corpus"]["calibration"]["windows"] = 24
    params["corpus"]["evaluation"]["windows"] = 12
    params["tasks"]["limit"] = 40
    params["latency"] |= {"prompt_tokens": 64, "output_tokens": 16}
    params["serving"] |= {"concurrency": [2], "requests": 6, "prompt_tokens": 32, "output_tokens": 8}
    params["selection"]["concurrency"] = 2
    workspace.params(**params | {"artifacts": {name: params["artifacts"][name] for name in artifacts}})
    workspace.run("git", "init", "-q")
    workspace.commit("start")
    return workspace
