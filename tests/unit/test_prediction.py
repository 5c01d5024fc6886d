"""What does not fit this machine is refused before a build begins, with both numbers."""

from pathlib import Path

import pytest

from pipeline import machine
from pipeline.errors import RequirementError
from pipeline.params import Params, load
from pipeline.sizing import hardware
from pipeline.stages import prediction

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models/demo"


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(machine.DECLARED, "none")
    return load(ROOT / "params.yaml")


def test_the_demo_fits_and_is_predicted(params: Params) -> None:
    estimate = prediction.predict(params, params.artifacts["gguf-q4_k_m"], DEMO)
    prediction.require_room(params, "gguf-q4_k_m", estimate)
    found = prediction.record(estimate)
    # Measured on the demo: 4,333,163 bytes and 167 MB; the limits are 3 and 15 %.
    assert found.bytes == pytest.approx(4_333_163, rel=0.03)
    assert found.serving_bytes == pytest.approx(167.3e6, rel=0.15)
    assert found.serving_gpu_bytes is None


def test_too_little_memory_or_disk_is_said_with_numbers_unless_forced(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate = prediction.predict(params, params.artifacts["awq-int4"], DEMO)
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 10**9)
    with pytest.raises(RequirementError, match=r"building takes 1.83 GB of memory, of 950 MB") as caught:
        prediction.require_room(params, "awq-int4", estimate)
    assert prediction.FORCE in str(caught.value)
    prediction.require_room(params.model_copy(update={"force": True}), "awq-int4", estimate)
    monkeypatch.setenv(prediction.FORCE, "1")
    prediction.require_room(params, "awq-int4", estimate)


def test_weights_that_no_memory_holds_are_refused_though_they_could_be_built(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GGUF maps files: a build needs little, but the stages after it could not run the model."""
    raw = params.model_dump()
    raw["serving"]["concurrency"] = [64]
    raw["selection"]["concurrency"] = 64
    many = Params.model_validate(raw)
    estimate = prediction.predict(many, many.artifacts["gguf-f16"], DEMO)
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 5 * 10**8)
    with pytest.raises(
        RequirementError, match=r"gguf-f16 does not fit.*\n  serving takes .* cache 805 MB\), of 475 MB"
    ):
        prediction.require_room(many, "gguf-f16", estimate)
