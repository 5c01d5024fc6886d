"""Each backend's own runtime against the checkpoint's tokenizer: conversations, added tokens and BOS, id by id."""

import pydoc_data.topics
import shutil
from pathlib import Path
from typing import cast

import pytest

from pipeline.backends.awq.backend import Awq
from pipeline.backends.common import checks, hf_tokenizer
from pipeline.backends.contract import Backend
from pipeline.backends.gguf import server
from pipeline.backends.gguf.backend import Gguf
from pipeline.backends.gptq.backend import Gptq
from pipeline.backends.onnx.backend import Onnx
from pipeline.errors import MeasurementError
from pipeline.records import Message, Vocabulary
from tests.contract import packed

DEMO = Path(__file__).parents[2] / "models" / "demo"
RECIPES: dict[str, Gguf | Onnx | Gptq | Awq] = {
    "gguf": Gguf(backend="gguf", quantization="F16"),
    "onnx": Onnx(backend="onnx", precision="fp32"),
    "gptq": Gptq(backend="gptq", bits=4),
    "awq": Awq(backend="awq", bits=4),
}
Built = tuple[Backend, Path]
Found = tuple[list[str], float | None, tuple[str, ...]]

GGUF_ADDS_BOS = b"tokenizer.ggml.add_bos_token\x07\x00\x00\x00"


@pytest.fixture(scope="module")
def reference() -> Vocabulary:
    if not (DEMO / "config.json").is_file():
        pytest.skip("models/demo holds no checkpoint")
    return hf_tokenizer.vocabulary(hf_tokenizer.load(DEMO), [pydoc_data.topics.topics["with"]])


@pytest.fixture(scope="module", params=RECIPES)
def built(request: pytest.FixtureRequest, reference: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The demo checkpoint as an artifact of each backend; pytest runs all tests of one backend together."""
    name = cast(str, request.param)
    recipe = RECIPES[name]
    if missing := recipe.requirements():
        pytest.skip(f"{missing[0].what}; {missing[0].remedy}")
    folder = tmp_path_factory.mktemp(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return recipe, packed.built(recipe, packed.case(folder), tmp_path_factory)


def found(recipe: Backend, artifact: Path, vocabulary: Vocabulary) -> Found:
    """Return the problems, the share of conversations that agree, and the notes."""
    with recipe.inspect(artifact, DEMO) as contents:
        problems = checks.problems(contents, vocabulary)
        return problems, *checks.chat_template_agreement(contents.tokenizer, vocabulary)


def altered(artifact: Path, into: Path, old: bytes, new: bytes) -> Path:
    """Copy an artifact with some bytes of its tokenizer's files, or of its one GGUF file, replaced."""
    assert len(new) == len(old), "lengths are written before texts in a GGUF file"
    copy = shutil.copytree(artifact, into)
    changed = 0
    for path in copy.iterdir():
        if path.suffix in (".json", ".jinja", ".gguf") and old in (content := path.read_bytes()):
            path.write_bytes(content.replace(old, new))
            changed += 1
    assert changed
    return copy


def test_renders_as_the_checkpoint_does(built: Built, reference: Vocabulary) -> None:
    assert reference.adds_bos
    assert {"<s>": 1, "</s>": 2}.items() <= reference.added_tokens.items()
    assert all(chat.ids[0] == 1 and chat.ids[1] != 1 for chat in reference.chats)
    assert found(*built, reference) == ([], 1.0, ())


def test_an_altered_template_is_told_with_the_place(built: Built, reference: Vocabulary, tmp_path: Path) -> None:
    recipe, artifact = built
    broken = altered(artifact, tmp_path / "broken", b"[INST] ", b"[TSNI] ")
    problems, agreement, (note,) = found(recipe, broken, reference)
    assert problems == ["the checkpoint's chat template differs"]
    assert agreement == 0
    assert "'one question' parts from the checkpoint's at position 2," in note


def test_a_template_that_refuses_is_told_with_its_words(built: Built, reference: Vocabulary, tmp_path: Path) -> None:
    recipe, artifact = built
    broken = altered(artifact, tmp_path / "broken", b") != (loop.index0", b") == (loop.index0")
    _, agreement, (note,) = found(recipe, broken, reference)
    assert agreement == 0
    assert "'one question' is refused: " in note
    assert "must take turns" in note


def test_a_renamed_added_token_is_damage(built: Built, reference: Vocabulary, tmp_path: Path) -> None:
    recipe, artifact = built
    broken = altered(artifact, tmp_path / "broken", b"</s>", b"</x>")
    problems, _, _ = found(recipe, broken, reference)
    assert any("for the added token '</s>', which is 2" in problem for problem in problems)


@pytest.mark.parametrize("built", ["gguf"], indirect=True)
def test_gguf_that_forgets_bos_is_damage(built: Built, reference: Vocabulary, tmp_path: Path) -> None:
    """Conversations stay the same: there the template writes BOS."""
    recipe, artifact = built
    broken = altered(artifact, tmp_path / "broken", GGUF_ADDS_BOS + b"\x01", GGUF_ADDS_BOS + b"\x00")
    problems, agreement, _ = found(recipe, broken, reference)
    assert problems == ["its tokenizer does not add BOS to plain text, the checkpoint's adds it"]
    assert agreement == 1


@pytest.mark.parametrize("built", ["gguf"], indirect=True)
def test_bos_twice_in_gguf_is_told(built: Built, reference: Vocabulary, tmp_path: Path) -> None:
    """llama-server takes off one BOS of a template, and adds one itself."""
    recipe, artifact = built
    broken = altered(artifact, tmp_path / "broken", b'bos_token + "[INST] "', b"bos_token + bos_token")
    _, agreement, (note,) = found(recipe, broken, reference)
    assert agreement == 0
    assert "at position 1, 1 " in note


@pytest.mark.parametrize("built", ["gguf"], indirect=True)
def test_a_template_that_llama_server_cannot_read_is_told(built: Built, reference: Vocabulary, tmp_path: Path) -> None:
    recipe, artifact = built
    broken = altered(artifact, tmp_path / "broken", b"{%- endfor -%}", b"{%- endfoo -%}")
    _, agreement, (note,) = found(recipe, broken, reference)
    assert agreement == 0
    assert "refused: llama-server" in note


def test_a_file_that_llama_server_cannot_load_is_a_measurement_error(tmp_path: Path) -> None:
    if missing := RECIPES["gguf"].requirements():
        pytest.skip(f"{missing[0].what}; {missing[0].remedy}")
    (tmp_path / "model.gguf").write_bytes(b"GGUF and nothing more")
    with server.renderer(tmp_path / "model.gguf") as render, pytest.raises(MeasurementError, match="exited with 1"):
        render((Message(role="user", content="Hello"),), True)
