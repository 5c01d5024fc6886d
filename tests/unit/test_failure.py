"""What fails for one artifact is a row with its reason, and what concerns all of them stops the run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evals.tokens import Tokens
from pipeline import paths
from pipeline.errors import (
    AssayError,
    BuildError,
    CapacityError,
    FailedRowsError,
    MeasurementError,
    NativeCrashError,
    ParamsError,
    RequirementError,
    StorageError,
)
from pipeline.metrics import Measured
from pipeline.params import Objective, Params, SelectionParams, load
from pipeline.records import FILE, Artifact, Failure, Quality, Selection, Standing
from pipeline.report import content, page, table
from pipeline.stages import failure, outcome, selection
from tests.support import reports

ROOT = Path(__file__).parents[2]
NAME = "gguf-f16"
PROGRAM = """
import ctypes, sys
from pipeline import __main__ as program
from pipeline.cli import stages
stages._run = lambda *words: ctypes.string_at(0)
sys.argv = ["assay", "quality", "gguf-f16"]
sys.exit(program.main())
"""


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A folder of its own with params.yaml, in which one artifact was built."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASSAY_STRICT", raising=False)
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    recipe = load().artifacts[NAME].model_dump()
    record = Artifact(name=NAME, recipe=recipe, checkpoint="c", calibration="c", digest="d")
    record.save(paths.artifact(NAME) / FILE)
    return load()


def test_a_stage_that_crashes_leaves_a_row_and_under_strict_nothing(params: Params) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ASSAY_STRICT": "1"}
    strict = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False)
    assert strict.returncode == NativeCrashError.exit_code
    assert not paths.quality(NAME).exists()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env | {"ASSAY_STRICT": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "to try again: dvc repro --force --single-item quality@gguf-f16" in done.stderr
    record = Quality.load(paths.quality(NAME))
    assert record.failure is not None
    assert (record.failure.stage, record.failure.exit_code) == ("quality", NativeCrashError.exit_code)
    assert record.failure.reason.startswith("quality gguf-f16 was killed by SIGSEGV (")
    assert any("in string_at" in line for line in record.failure.log), "the stack"
    assert record.unavailable == record.failure.words
    assert Tokens.load(paths.tokens(NAME)).nll.size == 0


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (BuildError("damaged"), True),
        (MeasurementError("not a number"), True),
        (NativeCrashError("killed"), True),
        (RuntimeError("of a library"), True),
        (StorageError("full"), False),
        (RequirementError("no tool"), False),
        (CapacityError("takes 31 GB, of 23"), True),
        (ParamsError("no such key"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_what_concerns_all_stops_the_run(error: Exception, goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASSAY_STRICT", raising=False)
    assert failure.concerns_one(error) is goes_on
    monkeypatch.setenv("ASSAY_STRICT", "1")
    assert not failure.concerns_one(error)


@pytest.mark.parametrize("stage", ["quality", "latency", "tasks"])
def test_an_error_that_nobody_foresaw_keeps_its_traceback_and_no_secret(
    params: Params, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")

    def raised(act: Callable[[], None]) -> Exception:
        try:
            act()
        except RuntimeError as error:
            return error
        raise AssertionError

    def library() -> None:
        raise RuntimeError("cannot reach https://user:hf_abcdefghijkl@host")

    kept = failure.keep(params, stage, NAME, raised(library))
    assert kept.reason == "RuntimeError: cannot reach https://user:$HF_TOKEN@host"
    assert kept.exit_code == AssayError.exit_code
    assert any(line.strip().endswith("in library") for line in kept.log)
    assert "hf_abcdefghijkl" not in kept.model_dump_json()


BROKEN = Failure(
    stage="latency", artifact="onnx-3", reason="killed <by> SIGILL", exit_code=14, log=("the | last", "<b>line</b>")
)


def test_selection_passes_over_a_row_that_failed_and_the_report_shows_it() -> None:
    ranking, run = reports.finished(6, gone=False)
    assert ranking.winner is not None
    broken = BROKEN.model_copy(update={"artifact": ranking.winner})
    latency = run.latency[ranking.winner].model_copy(update={"unavailable": broken.words, "failure": broken})
    measured = [
        Measured(
            quality=run.quality[name],
            latency=latency if name == ranking.winner else run.latency[name],
            tasks=run.tasks[name],
            concurrency=4,
        )
        for name in run.quality
    ]
    fastest = Objective(metric="served_output_tokens_per_second", direction="maximize")
    found = selection.select(SelectionParams(objective=fastest, constraints={}, concurrency=4), measured)
    assert found.winner not in (None, ranking.winner)
    (standing,) = [one for one in found.ranking if one.name == ranking.winner]
    assert (standing.rank, standing.failure) == (None, broken)
    assert table.verdict(standing, found.winner) == broken.words
    assert content.sentence(found, 4).endswith(f"Not counting 1 that failed: {ranking.winner}.")
    html = page.page(found, run)
    assert f"<details><summary>What latency@{ranking.winner} printed last</summary>" in html
    assert "&lt;b&gt;line&lt;/b&gt;" in html
    assert "<b>line" not in html


def test_the_end_of_a_run_names_each_row_and_what_tries_it_again(tmp_path: Path, params: Params) -> None:
    def write(*standings: Standing) -> None:
        ranking = Selection(objective={}, constraints={}, winner=None, ranking=standings, pareto_front=())
        ranking.save(paths.SELECTION)

    sound = Standing(name="gguf-f16", rank=1, metrics={})
    failed = Standing(name="onnx-3", rank=None, metrics={}, unavailable=BROKEN.words, failure=BROKEN)
    write(sound, Standing(name="gone", rank=None, metrics={}, unavailable="here: needs a GPU"))
    outcome.outcome(params)
    write(sound, failed)
    with pytest.raises(FailedRowsError, match=r"1 of 2 artifacts failed(.|\n)*--single-item latency@onnx-3"):
        outcome.outcome(params)
