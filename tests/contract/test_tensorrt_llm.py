"""The TensorRT-LLM backend against a stand-in for its container: what is asked for, written, checked, and refused."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from evals.windows import Windows
from pipeline.backends.common import checks, hf_tokenizer
from pipeline.backends.contract import Built
from pipeline.backends.tensorrt_llm import target
from pipeline.backends.tensorrt_llm.backend import TensorRtLlm
from pipeline.compute import Compute
from pipeline.errors import BuildError, MeasurementError, RequirementError
from pipeline.records import Gpu
from tests.support.demo import CHECKPOINT

STANDIN = Path(__file__).parents[1] / "support" / "tensorrt_llm_standin.py"
HOPPER = Gpu(name="NVIDIA H100 80GB HBM3", compute_capability="9.0", memory_mib=81559, driver="580.65.06")
ADA = Gpu(name="NVIDIA L4", compute_capability="8.9", memory_mib=23034, driver="570.10")
SIZES = {"max_batch_size": 4, "max_input_tokens": 512, "max_sequence_tokens": 1024}
WINDOWS = np.random.default_rng(0).integers(3, 4096, (40, 64), dtype=np.int32)


def recipe(quantization: str = "fp8", **fields: object) -> TensorRtLlm:
    return TensorRtLlm.model_validate({"backend": "tensorrt_llm", "quantization": quantization, **SIZES, **fields})


def compute(*gpus: Gpu) -> Compute:
    return Compute(threads=1, gpus=gpus)


@pytest.fixture(autouse=True)
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the stand-in is on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "podman").write_text(f'#!/bin/sh\nexec {sys.executable} -B {STANDIN} "$@"\n')
    (folder / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    (tmp_path / "tools").mkdir()
    monkeypatch.setenv("STANDIN_TOOLS", str(tmp_path / "tools"))
    for name in ("ASSAY_TENSORRT_LLM", "ASSAY_CONTAINER_FLAGS", "ASSAY_CONTAINER_RUN_FLAGS", "STANDIN_FAULT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    count = len(WINDOWS)
    windows = Windows(ids=WINDOWS, document=np.arange(count, dtype=np.int32), utf8_bytes=np.full(count, 200))
    windows.save(folder / "calibration.npz")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def build(asked: TensorRtLlm, corpus: Path, out: Path, source: Path = CHECKPOINT) -> Built:
    return asked.build(source, corpus, out, compute(HOPPER))


def gptq(folder: Path, **changes: object) -> Path:
    """The demo checkpoint, said to be a GPTQ artifact."""
    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text())
    stored = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True, **changes}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stored}))
    return folder


def problems(asked: TensorRtLlm, out: Path) -> Sequence[str]:
    vocabulary = hf_tokenizer.vocabulary(hf_tokenizer.load(CHECKPOINT), ["A river runs."])
    with asked.inspect(out, CHECKPOINT) as contents:
        return checks.problems(contents, vocabulary)


@pytest.mark.parametrize(
    "asked",
    [
        recipe("bf16"),
        recipe("fp8", kv_cache="fp8", tensor_parallel=2),
        recipe("int8_wo", kv_cache="int8"),
        recipe("int4_wo"),
        recipe("int4_awq", group_size=64),
        recipe("fp8", mode="checkpoint"),
        recipe("int4_awq", mode="checkpoint", kv_cache="fp8"),
    ],
    ids=lambda asked: f"{asked.mode}-{asked.quantization}-{asked.kv_cache}",
)
def test_what_is_built_is_sound_and_tells_what_it_was_built_for(asked: TensorRtLlm, corpus: Path, out: Path) -> None:
    built = build(asked, corpus, out)
    assert problems(asked, out) == []
    assert built.tools["tensorrt_llm"] == "1.2.1"
    assert built.tools["tensorrt"] == "10.13.3.9"
    assert (built.tools["gpu"], built.tools["compute_capability"]) == ("NVIDIA H100 80GB HBM3", "9.0")
    assert built.tools["driver"] == "580.65.06"
    assert not list(out.parent.glob(".tensorrt_llm-*"))


def test_nothing_of_the_machine_is_left_in_what_is_built(corpus: Path, out: Path, tmp_path: Path) -> None:
    build(recipe("bf16"), corpus, out)
    for file in out.rglob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file


def test_a_gptq_artifact_keeps_its_groups_and_zero_points(corpus: Path, out: Path, tmp_path: Path) -> None:
    asked = recipe("w4a16_gptq", source="artifacts/gptq-int4")
    build(asked, corpus, out, gptq(tmp_path / "gptq", sym=False))
    stored = json.loads((out / "engine" / "config.json").read_text())["pretrained_config"]["quantization"]
    assert (stored["group_size"], stored["has_zero_point"]) == (64, True)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert problems(asked, out) == []


@pytest.mark.parametrize("mode", ["engine", "checkpoint"])
def test_calibration_takes_every_window_as_it_is(
    mode: str, corpus: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_SEEN", str(tmp_path / "seen.npy"))
    build(recipe("int4_awq", mode=mode), corpus, out)
    assert np.array_equal(np.load(tmp_path / "seen.npy"), WINDOWS)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("version", "this is TensorRT-LLM 1.1.0, and 1.2.1 is asked for"),
        ("oom", r"CUDA out of memory(.|\n)*lower max_batch_size \(4\), max_sequence_tokens \(1024\)"),
        ("killed", "killed by SIGKILL(.|\n)*for want of main memory"),
        ("fails", "could not find any implementation for node"),
        ("unquantized", 'quantization.quant_algo is null, and "W8A16" was asked for'),
        ("engine-unquantized", 'quantization.quant_algo is null, and "W8A16" was asked for'),
        ("clamped", "build_config.max_batch_size is 2, and 4 was asked for"),
        ("nan", "transformer.ln_f.weight holds 16 values that are NaN"),
    ],
)
def test_what_goes_wrong_is_told_and_leaves_nothing(
    fault: str, said: str, corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_FAULT", fault)
    with pytest.raises(BuildError, match=said):
        build(recipe("int8_wo"), corpus, out)
    assert not list(out.iterdir())
    assert not list(out.parent.glob(".tensorrt_llm-*"))


def test_gpu_memory_that_runs_out_while_it_compiles_is_recognised(
    corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_FAULT", "oom")
    with pytest.raises(BuildError, match="raise tensor_parallel"):
        build(recipe("fp8"), corpus, out)  # whose conversion takes another way


def test_a_quantized_checkpoint_that_is_none_is_refused(
    corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_FAULT", "unquantized")
    with pytest.raises(BuildError, match='quant_algo is null, and "FP8" was asked for'):
        build(recipe("fp8", mode="checkpoint"), corpus, out)


def test_windows_that_do_not_fit_are_found_before_anything_is_built(corpus: Path, out: Path) -> None:
    with pytest.raises(BuildError, match=r"corpus\.window_tokens is 64"):
        build(recipe("bf16", max_input_tokens=63), corpus, out)


def test_without_a_place_to_run_each_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (lacking,) = recipe().requirements()
    assert "podman" in lacking.remedy
    assert "python3.12" in lacking.remedy
    monkeypatch.setenv("ASSAY_TENSORRT_LLM", "container")
    (lacking,) = recipe().requirements()
    assert lacking.what == "neither podman nor docker is installed"


def test_a_build_without_a_place_to_run_says_so(
    corpus: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequirementError, match="no place to run"):
        build(recipe(), corpus, out)


@pytest.mark.parametrize("mode", ["engine", "checkpoint"])
def test_it_is_scored_over_the_pipe(mode: str, corpus: Path, out: Path) -> None:
    asked = recipe("fp8", mode=mode)
    build(asked, corpus, out)
    ids = WINDOWS[0]
    with asked.open(out, compute(HOPPER)) as runner:
        whole = np.concatenate([block.copy() for block in runner.logits(ids)])
        assert whole.shape == (len(ids) - 1, 4096)
        assert whole.dtype == np.float32
        again = np.concatenate([block.copy() for block in runner.logits(ids)])
        assert np.array_equal(whole, again)
        parts = [ids[40:44], ids[40:41], ids[40:]]
        rows = [block.copy() for block in runner.continuations([(ids[:40], parts)])]
        for part, found in zip(parts, rows, strict=True):
            assert np.array_equal(found, whole[39 : 39 + len(part)])
        made = list(runner.generate(ids[:-1], 3))
        assert len(made) == 3
        assert made[0] == whole[-1].argmax()
        assert runner.settings["device"] == HOPPER.name


def test_a_generation_that_is_left_early_does_not_spoil_the_next_answer(corpus: Path, out: Path) -> None:
    build(recipe(), corpus, out)
    with recipe().open(out, compute(HOPPER)) as runner:
        wanted = list(runner.generate(WINDOWS[1], 5))
        left = runner.generate(WINDOWS[0], 50)
        next(left)
        left.close()  # type: ignore[attr-defined]
        assert list(runner.generate(WINDOWS[1], 5)) == wanted


def test_logits_that_a_reused_cache_leaves_out_are_missed(
    corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(recipe(), corpus, out)
    monkeypatch.setenv("STANDIN_FAULT", "reuse")
    with recipe().open(out, compute(HOPPER)) as runner:
        list(runner.logits(WINDOWS[0]))
        with pytest.raises(MeasurementError, match="for 63 tokens were asked for, and 1 came"):
            list(runner.logits(WINDOWS[0]))


def test_a_runtime_that_does_not_load_it_is_quoted(corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(recipe(), corpus, out)
    monkeypatch.setenv("STANDIN_FAULT", "dies")
    with pytest.raises(MeasurementError, match="Version tag does not match"), recipe().open(out, compute(HOPPER)):
        pass


def test_an_engine_of_another_architecture_or_version_is_not_opened(corpus: Path, out: Path) -> None:
    build(recipe(), corpus, out)
    said = r"built for NVIDIA H100 80GB HBM3 \(compute capability 9.0\), and this machine has NVIDIA L4 \(8.9\)"
    with pytest.raises(MeasurementError, match=said), recipe().open(out, compute(ADA)):
        pass
    with pytest.raises(MeasurementError, match="1 GPUs, and 0 can be used"), recipe().open(out, compute()):
        pass
    older = target.load(out).model_copy(update={"tensorrt_llm": "1.2.0"})
    older.save(out / target.FILE)
    with pytest.raises(MeasurementError, match=r"TensorRT-LLM 1.2.0, and 1.2.1 is here"):
        recipe().open(out, compute(HOPPER)).__enter__()


def test_a_quantized_checkpoint_runs_on_other_architectures(corpus: Path, out: Path) -> None:
    asked = recipe("fp8", mode="checkpoint")
    build(asked, corpus, out)
    with asked.open(out, compute(ADA)) as runner:
        assert len(list(runner.generate(WINDOWS[0], 2))) == 2
