"""What the first stages refuse, on the demo checkpoint and texts of a few lines."""

import json
from pathlib import Path

import pytest

from pipeline import paths
from pipeline.errors import CorpusError, ParamsError
from pipeline.params import Params, load
from pipeline.records import FILE, Corpus
from pipeline.stages.checkpoint import checkpoint
from pipeline.stages.corpus import corpus
from pipeline.stages.inputs import inputs

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


def test_inputs_name_a_source_that_is_not_there() -> None:
    with pytest.raises(ParamsError, match=r"none.txt does not exist"):
        inputs(params(evaluation="none.txt"))
