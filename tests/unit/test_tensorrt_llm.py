"""TensorRT-LLM recipes: what is refused, what hardware they need, and the exact commands, held against golden files.

ASSAY_WRITE_GOLDEN=1 writes the golden files anew; read the difference before it is committed.
"""

import ast
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.backends.tensorrt_llm import build, commands, place, run, source, support, target, written
from pipeline.backends.tensorrt_llm.backend import TensorRtLlm
from pipeline.backends.tensorrt_llm.inside import convert
from pipeline.records import Gpu

BACKEND = Path(place.__file__).parent
GOLDEN = Path(__file__).parents[1] / "golden" / "tensorrt_llm"
FLAGS = tomllib.loads((BACKEND / "flags.toml").read_text())
CONFIG = {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 32, "vocab_size": 32000, "hidden_size": 4096}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def recipe(quantization: str = "fp8", **fields: object) -> TensorRtLlm:
    return TensorRtLlm.model_validate({"backend": "tensorrt_llm", "quantization": quantization, **fields})


RECIPES = {
    "engine-bf16": recipe("bf16"),
    "engine-fp8": recipe("fp8", kv_cache="fp8"),
    "engine-int8_wo": recipe("int8_wo", kv_cache="int8", max_batch_size=64),
    "engine-int4_wo": recipe("int4_wo"),
    "engine-int4_awq": recipe("int4_awq", group_size=64, tensor_parallel=2),
    "engine-w4a16_gptq": recipe("w4a16_gptq", source="artifacts/gptq-int4"),
    "engine-long": recipe("bf16", max_input_tokens=16000, max_sequence_tokens=16384),
    "checkpoint-fp8": recipe("fp8", mode="checkpoint", kv_cache="fp8"),
    "checkpoint-int4_awq": recipe("int4_awq", mode="checkpoint", tensor_parallel=4),
}


def gpu(capability: str, name: str = "NVIDIA") -> Gpu:
    return Gpu(name=name, compute_capability=capability, memory_mib=80000, driver="580.65.06")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quantization": "w4a16_gptq"}, "w4a16_gptq needs from: artifacts/NAME"),
        ({"quantization": "fp8", "from": "artifacts/gptq-int4"}, "fp8 is built from the checkpoint"),
        ({"quantization": "fp8", "group_size": 64}, "group_size: has no effect at fp8"),
        ({"quantization": "w4a16_gptq", "from": "artifacts/g", "kv_cache": "fp8"}, "kv_cache: fp8 is calibrated"),
        ({"quantization": "fp8", "kv_cache": "int8"}, "kv_cache: int8 does not go with fp8"),
        ({"quantization": "int4_awq", "mode": "checkpoint", "kv_cache": "int8"}, "kv_cache: int8 needs mode: engine"),
        ({"quantization": "bf16", "mode": "checkpoint"}, "mode: checkpoint takes fp8 or int4_awq, not bf16"),
        ({"quantization": "w4a16_gptq", "from": "artifacts/g", "mode": "checkpoint"}, "not w4a16_gptq"),
        ({"quantization": "fp8", "max_input_tokens": 4096}, "max_input_tokens must be less than"),
        ({"quantization": "fp8", "tensor_parallel": 3}, "tensor_parallel"),
        ({"quantization": "fp8", "from": "elsewhere"}, "from"),
    ],
)
def test_combinations_that_cannot_be_are_refused_by_name(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        TensorRtLlm.model_validate({"backend": "tensorrt_llm", **fields})


@pytest.mark.parametrize(
    ("asked", "changes", "said"),
    [
        (recipe(), {"architectures": ["MambaForCausalLM"]}, "engine mode is not documented for MambaForCausalLM"),
        (
            recipe("int4_awq"),
            {"architectures": ["MixtralForCausalLM"]},
            "does not list int4_awq for MixtralForCausalLM",
        ),
        (recipe(mode="checkpoint"), {"architectures": ["FalconForCausalLM"]}, "checkpoint mode is not documented"),
        (recipe(), {"quantization_config": {"quant_method": "fp8"}}, "the checkpoint is already quantized (fp8)"),
        (recipe(tensor_parallel=8), {"num_attention_heads": 12}, "12 attention heads cannot be shared by 8 GPUs"),
        (recipe(), {"max_position_embeddings": 2048}, "max_sequence_tokens is 4096, and the model was made for 2048"),
    ],
)
def test_models_that_are_not_listed_or_do_not_fit_are_refused(
    asked: TensorRtLlm, changes: dict[str, Any], said: str
) -> None:
    assert asked.refusal(CONFIG) is None
    reason = asked.refusal(CONFIG | changes)
    assert reason is not None
    assert said in reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quant_method": "awq"}, "artifacts/gptq-int4 is no GPTQ artifact"),
        ({"bits": 8}, "needs bits 4, and artifacts/gptq-int4 has 8"),
        ({"desc_act": True}, "needs desc_act False"),
        ({"checkpoint_format": "gptq_v2"}, "needs checkpoint_format gptq"),
        ({"group_size": 32}, "needs a group_size of 64 or 128, and artifacts/gptq-int4 has 32"),
    ],
)
def test_gptq_artifacts_that_converters_would_misread_are_refused(changes: dict[str, Any], said: str) -> None:
    asked = RECIPES["engine-w4a16_gptq"]
    assert asked.refusal(CONFIG | {"quantization_config": GPTQ}) is None
    reason = asked.refusal(CONFIG | {"quantization_config": GPTQ | changes})
    assert reason is not None
    assert said in reason


@pytest.mark.parametrize(
    ("asked", "gpus", "lacking"),
    [
        (recipe("fp8"), [gpu("8.9")], None),
        (recipe("fp8"), [gpu("10.0")], None),
        (recipe("fp8"), [], "needs an NVIDIA GPU of compute capability 8.9 for fp8"),
        (recipe("fp8"), [gpu("8.0"), gpu("9.0")], "needs an NVIDIA GPU of compute capability 8.9 for fp8"),
        (recipe("int4_awq"), [gpu("8.0")], None),
        (recipe("int4_awq"), [gpu("10.0")], "needs an NVIDIA GPU of compute capability 8.0 to below 10.0 for int4_awq"),
        (recipe("bf16"), [gpu("7.5")], "needs an NVIDIA GPU of compute capability 8.0 for bf16"),
        (
            recipe("bf16", kv_cache="int8"),
            [gpu("12.0")],
            "needs an NVIDIA GPU of compute capability 8.0 to below 10.0 for bf16 with a KV cache in int8",
        ),
        (recipe("fp8", tensor_parallel=2), [gpu("9.0"), gpu("9.0")], None),
        (
            recipe("fp8", tensor_parallel=2),
            [gpu("9.0")],
            "needs 2 alike NVIDIA GPUs of compute capability 8.9 for fp8",
        ),
        (
            recipe("fp8", tensor_parallel=2),
            [gpu("9.0"), gpu("8.9")],
            "needs 2 alike NVIDIA GPUs of compute capability 8.9 for fp8",
        ),
    ],
)
def test_what_hardware_is_lacking(asked: TensorRtLlm, gpus: list[Gpu], lacking: str | None) -> None:
    assert asked.lacks(gpus) == lacking


def test_an_older_transformers_finds_what_a_newer_one_wrote_under_other_names() -> None:
    plain = {"dtype": "bfloat16", "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}}
    older = source.translated(plain)
    assert (older["torch_dtype"], older["rope_theta"]) == ("bfloat16", 5e5)
    assert older["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}
    layered = {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}}
    older = source.translated(layered)
    assert (older["rope_theta"], older["rope_local_base_freq"]) == (1e6, 1e4)
    assert source.translated({"torch_dtype": "float16", "rope_theta": 1e4}) == {
        "torch_dtype": "float16",
        "rope_theta": 1e4,
    }


def test_a_target_is_compared_with_the_gpus_that_it_would_run_on() -> None:
    made = target.Target(
        mode="engine", gpu="NVIDIA H100", compute_capability="9.0", driver="580", tensor_parallel=1,
        tensorrt_llm="1.2.1", tools={},
    )  # fmt: skip
    assert target.mismatch(made, [gpu("9.0", "NVIDIA H200")], "1.2.1") is None
    said = target.mismatch(made, [gpu("10.0", "NVIDIA B200")], "1.2.1")
    assert said is not None
    assert "NVIDIA H100 (compute capability 9.0)" in said
    assert "NVIDIA B200 (10.0)" in said


def test_the_environment_has_the_version_of_the_container() -> None:
    pins = dict(re.findall(r"^(\S+)==(\S+)$", place.REQUIREMENTS.read_text(), re.MULTILINE))
    assert pins["tensorrt_llm"] == place.version() == FLAGS["version"]
    assert place.image().startswith(FLAGS["container"]["image"])


def rendered(asked: TensorRtLlm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Everything that TensorRT-LLM is told about a recipe, by the file's name."""
    for name in ("ASSAY_CONTAINER_FLAGS", "ASSAY_CONTAINER_RUN_FLAGS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 12)
    monkeypatch.setattr("os.getuid", lambda: 1000)
    monkeypatch.setattr("os.getgid", lambda: 1000)
    checkpoint, scratch, artifact = (folder / name for name in ("source", "scratch", "artifact"))
    for one in (checkpoint, scratch, artifact):
        one.mkdir(parents=True)
        (one / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": GPTQ}))
    source.prepare(checkpoint, scratch / "model")
    lines = []
    for runtime in ("podman", "docker"):
        where = place.Container(f"/usr/bin/{runtime}", place.image())
        made: list[str | Path] = ["python3", "isolated.py", build.INSIDE / "convert.py", "job.json", "result.json"]
        lines.append(where.command(made, readable=[checkpoint, build.INSIDE], writable=scratch))
        ask: list[str | Path] = ["python3", run.SCORE, "job.json"]
        lines.append(where.command(ask, readable=[artifact, build.INSIDE], writable=scratch))
    if asked.mode == "engine":
        lines.append(commands.build(asked, scratch / "converted", scratch / "engine", scratch / "timings.cache"))
    lines.append(commands.serve(asked, artifact, host="127.0.0.1", port=8000))
    texts = {
        "commands.txt": "".join(" ".join(line) + "\n" for line in lines),
        "convert.json": json.dumps(build.job(asked, checkpoint, scratch), indent=2) + "\n",
        "score.json": json.dumps(run.job(asked, artifact), indent=2) + "\n",
        commands.SERVING: commands.serving(asked),
    }
    names = {str(BACKEND): "BACKEND", str(folder.resolve()): ""}
    for path, name in names.items():
        texts = {file: text.replace(path, name) for file, text in texts.items()}
    return texts


@pytest.mark.parametrize("name", RECIPES)
def test_commands_and_jobs_are_as_they_were(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = rendered(RECIPES[name], tmp_path, monkeypatch)
    folder = GOLDEN / name
    if os.environ.get("ASSAY_WRITE_GOLDEN"):
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (folder / file).write_text(text)
    assert {file.name: file.read_text() for file in folder.iterdir()} == texts


@pytest.mark.parametrize("name", RECIPES)
def test_every_flag_is_one_that_was_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in rendered(RECIPES[name], tmp_path, monkeypatch)["commands.txt"].splitlines():
        outer, _, inner = line.partition(place.image())
        tool, flags = (inner or outer).split()[0], re.findall(r"(?<= )--[a-z_]+", inner or outer)
        if tool.startswith("trtllm-"):
            assert set(flags) <= set(FLAGS[tool]["flags"])
        if inner:
            runtime = Path(outer.split()[0]).name
            assert set(re.findall(r"(?<= )--[a-z-]+", outer)) <= set(FLAGS[runtime]["flags"])


@pytest.mark.parametrize("script", ["convert.py", "score.py"])
def test_every_call_takes_keywords_that_were_read(script: str) -> None:
    seen = set()
    for node in ast.walk(ast.parse((BACKEND / "inside" / script).read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in FLAGS["calls"]:
            seen.add(name)
            assert {keyword.arg for keyword in node.keywords} <= set(FLAGS["calls"][name]["keywords"]), name
    assert seen


def test_every_key_that_is_checked_is_one_that_was_read() -> None:
    text = Path(written.__file__).read_text()
    for section in ("converted", "engine", "quantized"):
        for key in FLAGS[section]["keys"]:
            assert f'"{key.rpartition(".")[2]}"' in text


def test_formats_have_the_names_of_modelopt() -> None:
    assert set(convert.CONFIGS) == support.CALIBRATED
