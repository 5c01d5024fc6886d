"""docs/extending.md, followed to the letter on a copy of the repository: a backend of its own, built and measured."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.records import FILE, Artifact, Quality
from tests.support.documents import ROOT, blocks

PAGE = ROOT / "docs/extending.md"
COPIED = (
    *("pipeline", "evals", "containers", "models", "params.yaml", "dvc.yaml", "constraints.txt", "pyproject.toml"),
    *(".dvcignore", ".dvc/config", ".dvc/.gitignore", ".gitignore"),
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with what the page adds, and with short texts."""
    folder = tmp_path_factory.mktemp("extended")
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    subprocess.run(["git", "init", "-q", folder], check=True)
    (folder / ".venv").symlink_to(sys.prefix)
    for block in blocks(PAGE):
        if block.kind == "file":
            (folder / block.value).parent.mkdir(exist_ok=True)
            (folder / block.value).write_text(block.text)
        elif block.kind == "edit":
            run(folder, block.text)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["corpus"] |= {"window_tokens": 128}
    params["corpus"]["calibration"]["windows"], params["corpus"]["evaluation"]["windows"] = 8, 8
    params["greedy"] = {"prompts": 2, "prompt_tokens": 16, "output_tokens": 4}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def run(folder: Path, script: str) -> str:
    """Run a block as a shell does; every command has to succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}
    done = subprocess.run(["bash", "-euc", script], cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{script}\nexited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def test_a_backend_that_follows_the_page_is_planned_built_and_measured(tree: Path) -> None:
    (block,) = (block for block in blocks(PAGE) if block.kind == "run")
    told = run(tree, block.text)
    assert "rounded-3" in told, "assay plan sizes it"
    artifact = Artifact.load(tree / "artifacts/rounded-3" / FILE)
    quality = Quality.load(tree / "measurements/quality/rounded-3.json")
    assert artifact.bits_per_weight == 16
    assert quality.perplexity_ratio is not None
    assert quality.divergence is not None
    assert 1 < quality.perplexity_ratio.value < 1.2, "fewer bits cost something, and not everything"
    assert quality.divergence.mean.value > 1e-3


def test_the_backend_passes_what_the_repository_is_held_to(tree: Path) -> None:
    package = "pipeline/backends/rounded"
    run(tree, f"ruff check {package} pipeline/backends/__init__.py && ruff format --check {package}")
    run(tree, "lint-imports")
    run(tree, f"mypy --cache-dir=/dev/null --follow-imports=silent {package} pipeline/backends/__init__.py")
