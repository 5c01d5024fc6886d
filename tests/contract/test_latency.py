"""Latency as served, with the demo's GGUF on the real llama-server behind the real gateway."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from containers.gateway.process import GatewayProcess, gateway
from evals import interference, memory
from evals.load import Exchange
from evals.load_client import LoadError, closed_loop
from pipeline import paths
from pipeline.compute import Compute
from pipeline.errors import MeasurementError, NativeCrashError, ParamsError, RequirementError
from pipeline.params import Params, load
from pipeline.records import FILE, Artifact, Latency
from pipeline.stages.artifact import artifact
from pipeline.stages.checkpoint import checkpoint
from pipeline.stages.corpus import corpus
from pipeline.stages.inputs import inputs
from pipeline.stages.latency import _prompts as prompts_of
from pipeline.stages.latency import latency
from pipeline.texts.pieces import pieces
from pipeline.toolchains import llama_cpp
from tests.support.disturbed import BUSY, QUIET, watching

ROOT = Path(__file__).parents[2]
NAME = "gguf-f16"
OUTPUT_TOKENS = 8


@pytest.fixture(scope="module")
def params() -> Params:
    """The repository's, with little text and little load."""
    raw = load(ROOT / "params.yaml").model_dump()
    raw["checkpoint"]["source"] = str(ROOT / "models/demo")
    raw["corpus"] |= {"window_tokens": 64}
    raw["corpus"]["calibration"]["windows"], raw["corpus"]["evaluation"]["windows"] = 8, 24
    raw["latency"] |= {"prompt_tokens": 32, "output_tokens": OUTPUT_TOKENS}
    raw["serving"] |= {
        "concurrency": (1, 2), "requests": 6, "warmup": 1, "prompt_tokens": 32, "output_tokens": OUTPUT_TOKENS
    }  # fmt: skip
    raw["selection"]["concurrency"] = 2
    return Params.model_validate(raw)


@pytest.fixture(scope="module")
def built(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which all stages before latency ran."""
    try:
        llama_cpp.find()
    except RequirementError as error:
        pytest.skip(str(error))
    root = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PYTHONPATH", str(ROOT))
        inputs(params)
        checkpoint(params)
        corpus(params)
        artifact(params, NAME)
        yield root


@pytest.fixture(scope="module")
def server(built: Path) -> Iterator[GatewayProcess]:
    with gateway(paths.artifact(NAME), compute=Compute(threads=2), slots=2) as served:
        yield served


def counters(server: GatewayProcess) -> dict[str, float]:
    text = server.get("/metrics").decode()
    return {name: float(value) for name, value in re.findall(r"^(assay_\w+) (\S+)$", text, re.MULTILINE)}


def drive(server: GatewayProcess, prompts: list[list[int]], output_tokens: int = OUTPUT_TOKENS) -> Sequence[Exchange]:
    """Put a short load on it."""
    return closed_loop(server.url, server.model, warmup=[], prompts=prompts, output_tokens=output_tokens, concurrency=2)


def test_the_client_sees_what_the_server_counts_and_times(server: GatewayProcess) -> None:
    prompts = [[1, 300 + number, 17, 42] for number in range(10)]
    before = counters(server)
    exchanges = drive(server, prompts)
    after = counters(server)
    grown = {name: value - before[name] for name, value in after.items()}
    assert sum(one.completion_tokens for one in exchanges) == grown["assay_generated_tokens_total"] == 10 * 8
    assert sum(one.prompt_tokens for one in exchanges) == grown["assay_prompt_tokens_total"] == 10 * 4
    for kind in ("ttft", "end_to_end"):
        ours = sum(getattr(one, f"{kind}_seconds") for one in exchanges)
        theirs = grown[f"assay_{kind}_seconds_sum"]
        assert theirs < ours < theirs + 10 * 0.5, "no client has a token before its server, nor long after"


def test_a_gateway_tells_what_it_is_and_what_it_holds(server: GatewayProcess) -> None:
    record = Artifact.load(paths.artifact(NAME) / FILE)
    assert record.bytes is not None
    assert (server.model, server.context_tokens) == (NAME, 1024)
    assert server.runtime.startswith("llama.cpp")
    held = memory.peak_family_rss_bytes(server.pid)
    alone = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text())
    assert alone is not None
    assert held > 1024 * int(alone[1]) + record.bytes, "the engine's process, and the weights in it, are counted"


def test_the_stage_writes_every_level_with_its_raw_times(built: Path, params: Params) -> None:
    latency(params, NAME)
    record = Latency.load(paths.latency(NAME))
    assert record.decode_tokens_per_second is not None
    served = record.served
    assert served is not None
    assert (served.slots, [level.concurrency for level in served.levels]) == (2, [1, 2])
    for level in served.levels:
        assert len(level.exchanges) == 6 * level.concurrency
        assert {one.completion_tokens for one in level.exchanges} == {OUTPUT_TOKENS}
        assert {one.prompt_tokens for one in level.exchanges} == {32}
        tokens = OUTPUT_TOKENS * len(level.exchanges)
        assert level.output_tokens_per_second.value == pytest.approx(tokens / level.wall_seconds)
        assert level.ttft_seconds.p50 is not None
        assert 0 < level.ttft_seconds.p50.value < level.wall_seconds
    running = [sum(a.start_seconds < b.end_seconds <= a.end_seconds for a in level.exchanges for b in level.exchanges)
               for level in served.levels]  # fmt: skip
    assert running[0] == 6, "one stream asks one thing at a time"
    assert running[1] > 12


def test_what_is_measured_beside_other_work_is_measured_again_and_says_so(
    built: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The timing in process finds a quiet machine at its second try, two streams never do."""
    calmer = replace(BUSY, other_cpu_seconds=0.9)
    seen = watching(QUIET, BUSY, QUIET, QUIET, QUIET, BUSY, calmer, BUSY)
    monkeypatch.setattr(interference, "watch", lambda **_: seen())
    monkeypatch.setattr(interference, "PAUSES", (0.0,) * 9)
    latency(params, NAME)
    record = Latency.load(paths.latency(NAME))
    tries = {part: (len(one.tries), one.kept) for part, one in record.watched.items()}
    assert tries == {
        "load": (1, 0),
        "in process": (2, 1),
        "served load": (1, 0),
        "served, 1 at a time": (1, 0),
        "served, 2 at a time": (3, 1),
    }
    assert record.disturbed(1) == {}
    assert record.disturbed(2) == {"served": "other processes ran (cc1plus) 0.45 of 2 processors"}
    said = capfd.readouterr().err
    assert "gguf-f16, in process: other processes ran (cc1plus) 1.00 of 2 processors: measured again" in said
    assert "0.45 of 2 processors: the figures are kept, and marked as those of a busy machine" in said


def test_each_try_has_prompts_of_its_own_while_the_text_lasts(params: Params) -> None:
    count = 7 * 3
    for tokens, tries in ((1536, 3), (32 + 2 * count, 2), (32 + count, 1)):
        prompts = [[int(prompt[0]) for prompt in one] for one in prompts_of(params.serving, np.arange(tokens))]
        assert [len(one) for one in prompts] == [count] * tries
        assert len({first for one in prompts for first in one}) == tries * count


def test_a_gateway_that_dies_under_load_is_an_error(built: Path) -> None:
    def drive_until_it_dies() -> None:
        with gateway(paths.artifact(NAME), compute=Compute(threads=2), slots=2) as served:
            threading.Timer(0.5, served.kill).start()
            with pytest.raises(LoadError, match="hung up or fell silent"):
                drive(served, [[1, 300 + number] for number in range(400)], output_tokens=200)

    with pytest.raises(NativeCrashError, match=r"the gateway was killed by SIGKILL .* after SIGTERM"):
        drive_until_it_dies()


def test_an_engine_that_does_not_come_up_is_an_error_with_its_words(built: Path, tmp_path: Path) -> None:
    record = Artifact.load(paths.artifact(NAME) / FILE)
    for file in record.files:
        (tmp_path / file.path).parent.mkdir(exist_ok=True)
        (tmp_path / file.path).write_bytes(b"\0" * file.bytes)
    record.save(tmp_path / FILE)
    began = time.monotonic()
    fails = pytest.raises(MeasurementError, match=r"has an engine that does not come up: .*exited with")
    with fails, gateway(tmp_path, compute=Compute(threads=1), slots=1):
        pass
    fails = pytest.raises(MeasurementError, match=r"exited with 2 before it was ready(.|\n)*cannot be read")
    with fails, gateway(tmp_path / "nothing", compute=Compute(threads=1), slots=1):
        pass
    assert time.monotonic() - began < 60


def test_prompts_that_the_context_cannot_hold_are_refused_by_the_stage(built: Path, params: Params) -> None:
    long = params.model_copy(update={"serving": params.serving.model_copy(update={"prompt_tokens": 1020})})
    with pytest.raises(MeasurementError, match=r"serving gguf-f16, 1 at a time: .*context_length_exceeded"):
        latency(long, NAME)


def test_pieces_of_a_text_begin_at_different_places() -> None:
    text = np.arange(40, dtype=np.int32)
    found = pieces(text, 31, 10, "serving.prompt_tokens")
    assert len({int(piece[0]) for piece in found}) == 31
    assert {len(piece) for piece in found} == {10}
    with pytest.raises(ParamsError, match=r"serving.prompt_tokens: 10, but .* do not hold 32 different"):
        pieces(text, 32, 10, "serving.prompt_tokens")
