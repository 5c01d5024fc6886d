from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline import digests, paths
from pipeline.commands.export import export
from pipeline.errors import AssayError, ParamsError, SelectionError, StorageError
from pipeline.records import FILE, Artifact, Checkpoint, Selection, Vocabulary


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two artifacts of a checkpoint without a chat template; the ONNX one won."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint = Checkpoint(
        source="hf://org/Tiny Llama_1B",
        revision="c0ffee",
        architecture="LlamaForCausalLM",
        dtype="bfloat16",
        parameters=1,
        vocabulary_size=3,
        context_tokens=131072,
        files=(),
        digest="d" * 64,
    )
    checkpoint.save(paths.CHECKPOINT / FILE)
    Vocabulary(
        size=3,
        special_ids={"bos": 1, "eos": 2},
        added_tokens={"</s>": 2},
        adds_bos=True,
        chat_template=None,
        samples=(),
        chats=(),
    ).save(paths.CORPUS / "vocabulary.json")
    make_artifact("gguf-q8_0", {"backend": "gguf", "quantization": "Q8_0"}, ["model-Q8_0.gguf"])
    make_artifact("onnx-int4", {"backend": "onnx", "precision": "int4"}, ["model.onnx", "tokenizer/tokenizer.json"])
    select("onnx-int4")
    return tmp_path


def make_artifact(name: str, recipe: dict[str, str | int | float | bool | None], files: list[str]) -> None:
    folder = paths.artifact(name)
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(file.encode() * 100)
    listed = digests.list_files(folder)
    artifact = Artifact(name=name, recipe=recipe, checkpoint="d" * 64, calibration="", files=listed, digest="a" * 64)
    artifact.save(folder / FILE)


def select(winner: str | None) -> None:
    Selection(objective={}, constraints={}, winner=winner, ranking=(), pareto_front=()).save(paths.SELECTION)


def test_a_folder_is_the_artifact(workspace: Path) -> None:
    export("folder", workspace / "out" / "deep")
    for path in ("model.onnx", "tokenizer/tokenizer.json"):
        assert (workspace / "out" / "deep" / path).read_bytes() == (paths.artifact("onnx-int4") / path).read_bytes()
    assert Artifact.load(workspace / "out" / "deep" / FILE) == Artifact.load(paths.artifact("onnx-int4") / FILE)
    assert [path.name for path in (workspace / "out").iterdir()] == ["deep"]


def test_one_tree_for_ollama_lm_studio_and_localai(workspace: Path) -> None:
    export("ollama", Path("out"), "gguf-q8_0")
    weights = Path("out/assay/tiny-llama_1b-gguf-q8_0/model-Q8_0.gguf")
    assert weights.samefile(paths.artifact("gguf-q8_0") / "model-Q8_0.gguf")
    lines = Path("out/Modelfile").read_text().splitlines()
    assert "FROM ./assay/tiny-llama_1b-gguf-q8_0/model-Q8_0.gguf" in lines
    assert "PARAMETER num_ctx 8192" in lines
    assert any("131072" in line for line in lines if line.startswith("#"))
    settings = yaml.safe_load(Path("out/tiny-llama_1b-gguf-q8_0.yaml").read_text())
    assert Path("out", settings["parameters"]["model"]) == weights
    assert settings["name"] == "tiny-llama_1b-gguf-q8_0"
    assert "template" not in settings


def test_files_are_copied_where_there_are_no_hard_links(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    export("folder", Path("out"), "gguf-q8_0")
    copied, original = Path("out/model-Q8_0.gguf"), paths.artifact("gguf-q8_0") / "model-Q8_0.gguf"
    assert copied.read_bytes() == original.read_bytes()
    assert not copied.samefile(original)


def damage() -> None:
    (paths.artifact("gguf-q8_0") / "model-Q8_0.gguf").write_bytes(b"other")


def remove() -> None:
    record = Artifact.load(paths.artifact("gguf-q8_0") / FILE)
    record.model_copy(update={"unavailable": "no such thing"}).save(paths.artifact("gguf-q8_0") / FILE)


def change_checkpoint() -> None:
    record = Checkpoint.load(paths.CHECKPOINT / FILE)
    record.model_copy(update={"digest": "e" * 64}).save(paths.CHECKPOINT / FILE)


@pytest.mark.parametrize(
    ("name", "before", "error", "message"),
    [
        (None, lambda: None, ParamsError, "onnx.*take GGUF"),
        (None, lambda: select(None), SelectionError, "--artifact"),
        ("gguf-q8_0", damage, StorageError, "truncated or altered"),
        ("gguf-q8_0", remove, ParamsError, "no such thing"),
        ("gguf-q8_0", change_checkpoint, StorageError, "dvc repro"),
        ("gguf-q4_0", lambda: None, StorageError, "gguf-q4_0"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(
    workspace: Path, name: str | None, before: Callable[[], None], error: type[AssayError], message: str
) -> None:
    before()
    with pytest.raises(error, match=message):
        export("ollama", Path("out"), name)
    assert not [path for path in workspace.iterdir() if "out" in path.name]


def test_nothing_is_overwritten(workspace: Path) -> None:
    Path("out").mkdir()
    Path("out/mine").write_text("mine")
    with pytest.raises(ParamsError, match="there already"):
        export("folder", Path("out"))
    assert [path.name for path in Path("out").iterdir()] == ["mine"]
