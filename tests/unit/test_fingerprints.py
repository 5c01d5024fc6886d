"""What makes a stage run again: its own code and tools, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import fingerprints
from pipeline.commands.why import differences
from pipeline.images import assemble
from pipeline.records import Code

ROOT = Path(__file__).parents[2]
BACKENDS = ("gguf", "gptq", "onnx")
LIST = """
import json
from pipeline import fingerprints
print(json.dumps({one.name: one.model_dump() for one in fingerprints.records(%r)}))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, to be changed."""
    folder = tmp_path_factory.mktemp("tree")
    for package in fingerprints.PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def records(tree: Path, *more: Path, folder: Path | None = None) -> dict[str, dict[str, object]]:
    """The records of a copy's stages, as a process of its own finds them."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tree, *more)))}
    done = subprocess.run(
        [sys.executable, "-c", LIST % (BACKENDS,)],
        cwd=folder or tree,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, dict[str, object]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def before(tree: Path) -> dict[str, dict[str, object]]:
    return records(tree)


def changed(before: dict[str, dict[str, object]], after: dict[str, dict[str, object]]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


EVERY_BACKEND = {stage: {f"{stage}-{backend}" for backend in BACKENDS} for stage in fingerprints.METHODS}
MEASURED = ("quality", "tasks", "latency")
ON_WINDOWS = {"artifact-gguf", "artifact-gptq"}.union(*(EVERY_BACKEND[stage] for stage in MEASURED))
"""Stages that read windows of token ids; nothing is calibrated for ONNX."""


@pytest.mark.parametrize(
    ("path", "runs"),
    [
        ("pipeline/backends/gguf/build.py", {"artifact-gguf"}),
        ("pipeline/backends/gguf/run.py", {f"{stage}-gguf" for stage in MEASURED}),
        ("pipeline/backends/common/gptqmodel_child.py", {"artifact-gptq"}),
        ("containers/engines/llama_cpp/engine.py", {"latency-gguf"}),
        ("containers/gateway/page.html", EVERY_BACKEND["latency"]),
        ("pipeline/report/page.css", {"selection"}),
        ("pipeline/metrics/entries.py", {"selection"}),
        ("evals/windows.py", {"corpus", "reference", "answers", "verification", *ON_WINDOWS}),
        ("evals/tasks/README.md", {"answers", *EVERY_BACKEND["tasks"]}),
        ("containers/engines/onnxruntime/image/Containerfile", {"engine"}),
        ("pipeline/errors.py", set()),
        ("pipeline/architectures/tools.json", set()),
        ("pipeline/architectures/findings/gptq.toml", {"artifact-gptq"}),
        ("pipeline/backends/awq/recipe.py", set()),
    ],
)
def test_a_changed_file_runs_the_stages_that_it_shapes(
    tree: Path, before: dict[str, dict[str, object]], path: str, runs: set[str]
) -> None:
    file = tree / path
    text = file.read_text(encoding="utf-8") if file.exists() else None
    file.write_text(f"{text or ''}\nCHANGED = 1\n", encoding="utf-8")
    try:
        # The image holds all code, and the data beside it that is of a kind that code reads.
        packed = {"image"} if file.suffix in assemble.SUFFIXES else set()
        assert changed(before, records(tree)) == runs | packed
    finally:
        file.unlink() if text is None else file.write_text(text, encoding="utf-8")


def test_comments_and_docstrings_run_nothing_but_the_image_that_holds_them(
    tree: Path, before: dict[str, dict[str, object]]
) -> None:
    file = tree / "evals/scoring.py"
    text = file.read_text(encoding="utf-8")
    assert text.startswith('"""')
    file.write_text(text.replace('"""', '"""Said otherwise. ', 1) + "\n# a remark\n", encoding="utf-8")
    assert changed(before, records(tree)) == {"image"}
    file.write_text(text, encoding="utf-8")


def test_tasks_of_a_project_are_inputs_of_what_asks_them(
    tree: Path, before: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    task = tmp_path / "evals/tasks/ours.yaml"
    task.parent.mkdir(parents=True)
    task.write_text("task: ours\n", encoding="utf-8")
    assert changed(before, records(tree, folder=tmp_path)) == {"answers", *EVERY_BACKEND["tasks"]}


@pytest.mark.parametrize(
    ("distribution", "runs"),
    [
        ("gptqmodel", {f"{stage}-gptq" for stage in fingerprints.METHODS}),
        ("vl-convert-python", {"selection"}),
        ("rich", set()),
    ],
)
def test_another_version_of_a_tool_runs_what_it_shapes(
    tree: Path, before: dict[str, dict[str, object]], tmp_path: Path, distribution: str, runs: set[str]
) -> None:
    installed = tmp_path / f"{distribution.replace('-', '_')}-99.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 99.0\n")
    assert changed(before, records(tree, tmp_path)) == runs


def test_the_pin_of_llama_cpp_runs_all_of_gguf(tree: Path, before: dict[str, dict[str, object]]) -> None:
    pin = tree / "pipeline/backends/gguf/llama_cpp.txt"
    text = pin.read_text(encoding="utf-8")
    pin.write_text(text + "\n", encoding="utf-8")
    assert changed(before, records(tree)) >= {f"{stage}-gguf" for stage in fingerprints.METHODS}
    assert not any("onnx" in name or "gptq" in name for name in changed(before, records(tree)))
    pin.write_text(text, encoding="utf-8")


def test_dvc_yaml_names_every_record_and_no_module(before: dict[str, dict[str, object]]) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    named = set()
    for name, stage in stages.items():
        for dependency in stage.get("do", stage).get("deps", ()):
            assert not dependency.endswith(".py"), f"{name} names a module"
            if dependency.startswith("inputs/code/"):
                named.add(Path(dependency).stem.replace("${item.backend}", "gguf"))
    assert named == {one for one in before if not one.endswith(("-gptq", "-onnx"))}


def test_every_package_that_is_imported_is_a_tool_or_shapes_nothing() -> None:
    """A new dependency has to be put into one of the two lists."""
    import grimp

    graph = grimp.build_graph(*fingerprints.PACKAGES, include_external_packages=True, cache_dir=None)
    others = {module for module in graph.modules if module.partition(".")[0] not in fingerprints.PACKAGES}
    others -= set(sys.stdlib_module_names) | set(fingerprints.TOOLS) | fingerprints.PLAIN
    assert others == set()


def test_code_is_what_python_runs() -> None:
    text = '''"""Module."""

NAME = "# no comment"  # a comment
"""What it is."""


def say(name: str) -> str:
    """Say it,

    on several lines.
    """
    # a remark
    return f"{name} # {NAME}"
'''
    kept = 'NAME = "# no comment"\ndef say(name: str) -> str:\n    return f"{name} # {NAME}"'
    assert fingerprints.code(text) == kept


def test_what_changed_is_told_by_name() -> None:
    old = Code(name="quality-gguf", modules={"a": "1", "b": "1"}, data={"c": "1"}, tools={"torch": "2.12.0"})
    new = Code(name="quality-gguf", modules={"a": "2", "d": "1"}, data={"c": "1"}, tools={"torch": "2.13.0"})
    assert list(differences(old, new)) == [
        "module a changed",
        "module b was removed",
        "module d was added",
        "torch was 2.12.0 and is 2.13.0",
    ]
