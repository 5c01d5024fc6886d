"""Profiles: what is merged into params.yaml, and what is refused."""

import shutil
from pathlib import Path

import pytest

from pipeline import params
from pipeline.commands.profile import PROFILES, profile
from pipeline.errors import ParamsError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / PROFILES, tmp_path / PROFILES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> None:
    (PROFILES / f"{name}.yaml").write_text(text)


@pytest.mark.parametrize("path", sorted((ROOT / PROFILES).glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_adds_its_artifacts_and_leaves_the_others_alone(workspace: Path, path: Path) -> None:
    before = params.load().artifacts
    changed = profile(path.stem)
    after = params.load().artifacts
    assert {name: after[name] for name in before} == before
    assert {f"artifacts.{name}" for name in after.keys() - before.keys()} <= set(changed)
    assert after.keys() > before.keys()
    assert profile(path.stem) == []


def test_comments_order_and_style_of_params_stay(workspace: Path) -> None:
    before = Path("params.yaml").read_text().splitlines()
    write("more", "artifacts:\n  gguf-iq: {backend: gguf, from: checkpoint, quantization: Q4_K_S} # ours\nthreads: 3\n")
    assert profile("more") == ["artifacts.gguf-iq", "threads"]
    after = Path("params.yaml").read_text().splitlines()
    (gone,) = (line for line in before if line not in after)
    assert gone == "threads: null # CPU threads of every runtime; null is every core"
    new = [line for line in after if line not in before]
    assert new[0].startswith("  gguf-iq: {backend: gguf, from: checkpoint, quantization: Q4_K_S}")
    assert new[1].startswith("threads: 3")
    assert len(new) == 2


def test_a_recipe_of_the_same_name_is_replaced_whole(workspace: Path) -> None:
    write("other", "artifacts: {gptq-int4: {backend: onnx, from: checkpoint, precision: int4}}\n")
    assert profile("other") == ["artifacts.gptq-int4"]
    assert params.load().artifacts["gptq-int4"].backend == "onnx"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("artifacts: {x: {backend: gguf, from: checkpoint, quantization: Q9}}", "artifacts.x.gguf.quantization"),
        ("artifacts: {x: {backend: gguf, quantization: F16}}", "x does not say what it is built from"),
        ("artifacts: [", "not YAML"),
        ("- a", "expected a mapping"),
    ],
)
def test_a_profile_that_does_not_fit_changes_nothing(workspace: Path, text: str, message: str) -> None:
    before = Path("params.yaml").read_bytes()
    write("bad", text)
    with pytest.raises(ParamsError, match=rf"(?s)bad.yaml: .*{message}"):
        profile("bad")
    assert Path("params.yaml").read_bytes() == before
    assert not list(workspace.glob(".params*"))


def test_a_name_that_is_no_profile_gets_the_list(workspace: Path) -> None:
    with pytest.raises(ParamsError, match="'amd' is no profile; there is nvidia"):
        profile("amd")
