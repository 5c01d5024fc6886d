"""What the first stages refuse, on the demo checkpoint and texts of a few lines."""

import json
import shutil
from pathlib import Path

import pytest

from evals.windows import Windows
from pipeline import paths
from pipeline.backends.common import hf_tokenizer
from pipeline.errors import CorpusError
from pipeline.params import Params, load
from pipeline.records import FILE, Artifact, Corpus, Hardware, ReferenceAnswers, Tasks
from pipeline.stages.answers import answers
from pipeline.stages.checkpoint import checkpoint
from pipeline.stages.corpus import corpus
from pipeline.stages.inputs import inputs
from pipeline.stages.tasks import tasks

ROOT = Path(__file__).parents[2]
TEXT = "The quick brown fox number {0} jumps over lazy dog {0} and then rests near river {0} until noon of day {0}. "


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("calibration.txt").write_text("".join(TEXT.format(number) for number in range(40)))
    Path("evaluation.txt").write_text("".join(TEXT.format(number) for number in range(1000, 1040)))


def params(*, window_tokens: int = 64, evaluation: str = "evaluation.txt", max_overlap: float = 0.01) -> Params:
    """The repository's params with the texts of this test."""
    raw = load(ROOT / "params.yaml").model_dump()
    raw["checkpoint"]["source"] = str(ROOT / "models/demo")
    raw["corpus"] = {
        "window_tokens": window_tokens,
        "max_overlap": max_overlap,
        "calibration": {"source": "calibration.txt", "windows": 8},
        "evaluation": {"source": evaluation, "windows": 4},
    }
    return Params.model_validate(raw)


def test_the_corpus_is_cut_and_recorded_and_the_same_twice() -> None:
    checkpoint(params())
    corpus(params())
    first = Corpus.load(paths.CORPUS / FILE)
    corpus(params())
    assert Corpus.load(paths.CORPUS / FILE) == first
    assert (first.evaluation.windows, first.evaluation.tokens, first.prefix_id) == (4, 256, 1)
    assert first.overlap == 0


def test_texts_that_cannot_serve_are_refused_with_what_to_change() -> None:
    checkpoint(params())
    Path("short.txt").write_text("Too short.")
    with pytest.raises(CorpusError, match=r"corpus.evaluation: short.txt gives no window of 64 tokens"):
        corpus(params(evaluation="short.txt"))
    with pytest.raises(CorpusError, match=r"runs of 13 words also occur in calibration, .* allows 1.00%"):
        corpus(params(evaluation="calibration.txt"))
    with pytest.raises(
        CorpusError, match=r"corpus.window_tokens: 2048 is longer than the checkpoint's context of 1024"
    ):
        corpus(params(window_tokens=2048))
    assert not paths.CORPUS.exists()


def test_inputs_notice_a_changed_text_and_nothing_else() -> None:
    def states() -> list[object]:
        inputs(params())
        return [json.loads(path.read_text()) for path in (paths.CHECKPOINT_SOURCE, paths.TEXT_SOURCES)]

    before = states()
    assert states() == before
    Path("evaluation.txt").write_text("Another text.")
    after = states()
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_inputs_refuse_a_source_that_is_not_there_or_no_text() -> None:
    """Before the checkpoint is read, which may take minutes."""
    Path("scan.txt").write_bytes(b"%PDF-1.7")
    with pytest.raises(CorpusError, match=r"none.txt: there is no such file or folder"):
        inputs(params(evaluation="none.txt"))
    with pytest.raises(CorpusError, match=r"scan.txt: is a PDF"):
        inputs(params(evaluation="scan.txt"))
    with pytest.raises(CorpusError, match=r"hf://datasets/org/name: expected"):
        inputs(params(evaluation="hf://datasets/org/name"))


TALK = [
    {"role": "user", "content": TEXT.format(1000)},
    {"role": "assistant", "content": "".join(TEXT.format(number) for number in range(1001, 1010))},
]


def test_conversations_are_rendered_by_the_checkpoints_template_with_one_bos() -> None:
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": TALK}) + "\n" for _ in range(2)))
    checkpoint(params())
    corpus(params(evaluation="chats.jsonl"))
    found = Windows.load(paths.CORPUS / "evaluation.npz")
    assert (len(found), Corpus.load(paths.CORPUS / FILE).evaluation.documents) == (4, 2)
    tokenizer = hf_tokenizer.load(ROOT / "models/demo")
    expected = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=False)
    assert expected[0] == tokenizer.bos_token_id  # by the template itself
    assert found.ids[0].tolist() == expected[: found.ids.shape[1]]


def test_conversations_without_a_template_name_both() -> None:
    shutil.copytree(ROOT / "models/demo", "plain", ignore=shutil.ignore_patterns("chat_template.jinja"))
    Path("chats.jsonl").write_text(json.dumps({"messages": TALK}))
    wanted = params(evaluation="chats.jsonl")
    wanted = wanted.model_copy(update={"checkpoint": wanted.checkpoint.model_copy(update={"source": "plain"})})
    checkpoint(wanted)
    with pytest.raises(CorpusError, match=r"chats.jsonl: line 1: .*the checkpoint plain has no chat template"):
        corpus(wanted)


def test_a_task_that_the_text_does_not_give_is_a_row_and_no_error() -> None:
    """No model is loaded for it, and an artifact's tasks say the same."""
    checkpoint(params())
    corpus(params())
    assert params().tasks.names == ("cloze",)
    answers(params())
    found = ReferenceAnswers.load(paths.ANSWERS)
    assert found.tasks == {}
    assert "the evaluation text gives no items" in found.impossible["cloze"]
    Artifact(name="gguf-f16", recipe={}, checkpoint="", calibration="", digest="0").save(
        paths.artifact("gguf-f16") / FILE
    )
    Hardware(name="gguf-f16", lacks=None).save(paths.hardware("gguf-f16"))
    tasks(params(), "gguf-f16")
    assert Tasks.load(paths.tasks("gguf-f16")).impossible == found.impossible
