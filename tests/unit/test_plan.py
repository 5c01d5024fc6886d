"""`assay plan`: what it reads, what it says, how fast."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import __main__, machine
from pipeline.backends.gguf.backend import Gguf
from pipeline.backends.onnx.backend import Onnx
from pipeline.commands.plan import Plan, matrix, plan
from pipeline.errors import ParamsError
from pipeline.sizing import fit, hardware, read
from pipeline.sizing.estimate import Load
from pipeline.sizing.hardware import Hardware
from tests.support import published

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models/demo"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def config(folder: Path, values: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return str(path)


def test_the_matrix_needs_no_torch() -> None:
    code = (
        "import sys, pipeline.__main__ as m; code = m.main(['plan', '--matrix']); "
        "heavy = {'torch', 'transformers', 'onnxruntime', 'gguf'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_400_billion_parameters_from_a_configuration_alone(tmp_path: Path) -> None:
    """A mixture of many experts, which has the most tensors. Nothing but the plan is said."""
    path = config(tmp_path, published.LLAMA_4_MAVERICK)
    command = [sys.executable, "-m", "pipeline", "plan", path, "--hardware", "8x-h200", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert Plan.model_validate_json(done.stdout).parameters == pytest.approx(400.7e9, rel=0.001)


def test_tensors_of_a_mixture_stored_one_by_one_are_read_in_no_time(tmp_path: Path) -> None:
    """As many as DeepSeek-V3 has: 61 layers of 256 experts."""
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"
        for layer in range(61) for expert in range(256) for part in ("gate", "up", "down")
    ]  # fmt: skip
    header = {
        name: {"dtype": "BF16", "shape": [1, 2], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)
    }
    raw = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4 * len(names)))
    config(tmp_path, published.DEEPSEEK_V3)
    start = time.process_time()
    found = read.folder(tmp_path)
    assert time.process_time() - start < 10, "a search through all names for each takes minutes"
    assert len(found.weights) == 61 * 3
    assert found.parameters == 2 * len(names)
    assert found.active_parameters == 2 * len(names) * 8 / 256


def test_the_demo_is_sized_from_its_headers() -> None:
    found = plan(on="raspberry-pi-5-8gb")
    assert (found.parameters, found.counted, found.concurrency, found.context_tokens) == (6_819_072, False, 4, 1024)
    row = {row.name: row for row in found.rows}["gguf-q4_k_m"]
    assert row.bits_per_weight == pytest.approx(4.969, abs=0.001)
    assert row.cache_bytes_per_token == 6 * 2 * 2 * 64 * 2
    assert row.build_obstacles == row.serving_obstacles == ()
    assert row.refused is None


def test_what_cannot_be_built_or_served_says_why_with_numbers(tmp_path: Path) -> None:
    path = config(tmp_path, published.LLAMA_70B)
    rows = {row.name: row for row in plan(path, on="raspberry-pi-5-8gb").rows}
    assert "of memory, of 8.02 GB" in rows["awq-int4"].build_obstacles[0]
    assert rows["gguf-q2_k"].serving_obstacles[0].startswith("serving takes ")
    experts = {row.name: row for row in plan(config(tmp_path, published.MIXTRAL), on="h200").rows}
    assert "mixture of experts" in str(experts["gptq-int4"].refused)
    assert experts["gguf-q4_k_m"].refused is None
    quantized = config(tmp_path, {**published.LLAMA_8B, "quantization_config": {"quant_method": "fp8"}})
    assert all("already quantized" in str(row.refused) for row in plan(quantized, on="h200").rows)


def test_hardware_gates_follow_the_named_machine(tmp_path: Path) -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["artifacts"] = {
        "gptq": {"backend": "gptq", "from": "checkpoint", "bits": 4, "group_size": 128},
        "fp8": {"backend": "tensorrt_llm", "from": "checkpoint", "quantization": "fp8"},
        "from-gptq": {"backend": "tensorrt_llm", "from": "artifacts/gptq", "quantization": "w4a16_gptq"},
    }  # fmt: skip
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    source = config(tmp_path, published.LLAMA_8B)

    def obstacles(name: str) -> dict[str, tuple[str, ...]]:
        return {row.name: (row.refused or "", *row.build_obstacles) for row in plan(source, on=name, path=path).rows}

    assert obstacles("l40s") == {"gptq": ("",), "fp8": ("",), "from-gptq": ("",)}
    assert "compute capability" in obstacles("t4")["fp8"][1]
    assert obstacles("raspberry-pi-5-16gb")["gptq"][0] == ""


def test_a_group_size_that_does_not_fit_names_those_that_would(tmp_path: Path) -> None:
    """The artifact stage asks the same function. 576 is SmolLM2-135M's width."""
    narrow = {**published.LLAMA_8B, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
    narrow = {key: value for key, value in narrow.items() if key != "head_dim"} | {"num_key_value_heads": 3}
    rows = {row.name: row.refused for row in plan(config(tmp_path, narrow), on="l4").rows}
    told = "hidden_size is 576, no multiple of the group size 128; "
    assert rows["gptq-int4"] == told + "group_size 64 or 32 or -1 (one scale a row) would fit"
    assert rows["awq-int4"] == told + "group_size 64 or 32 would fit"
    odd = {row.name: row.refused for row in plan(config(tmp_path, narrow | {"hidden_size": 540}), on="l4").rows}
    assert str(odd["awq-int4"]).endswith("no group size of 32, 64, 128 fits")


def test_decoding_reads_the_active_weights_and_each_streams_cache(tmp_path: Path) -> None:
    model = read.model(config(tmp_path, published.QWEN_3_30B))
    recipe = Gguf(backend="gguf", quantization="F16")
    h200 = hardware.find("h200")
    assert h200.bandwidth == 4.8e12
    one = fit.decode_bound(recipe.estimate(model, Load(context_tokens=1, gpus=True)), h200)
    assert one == pytest.approx(4.8e12 / (2 * model.active_parameters), rel=0.01)  # routers are in 32 bits
    many = Load(streams=64, context_tokens=4096, gpus=True)
    together = fit.decode_bound(recipe.estimate(model, many), h200, 64)
    # 64 tokens reach 98 % of the experts: 30B instead of 3B are read, and 64 caches.
    assert together == pytest.approx(64 * 4.8e12 / (2 * 29.7e9 + 64 * 4096 * 98_304), rel=0.03)


def test_what_no_gpu_runs_is_held_against_main_memory(tmp_path: Path) -> None:
    """onnxruntime's CPU provider: a GPU's memory and bandwidth are of no use to it."""
    model = read.model(config(tmp_path, published.LLAMA_8B))
    estimate = Onnx(backend="onnx", precision="int8").estimate(model, Load(gpus=True))
    assert not estimate.serving.on_gpus
    assert fit.decode_bound(estimate, hardware.find("h200")) is None
    small = Hardware(
        name="small", kind="gpu", memory_bytes=80 * 2**30, bandwidth=1e12, source="-", host_memory_bytes=4 * 2**30
    )
    assert "of 4.08 GB" in fit.serving_problems(estimate, small)[0]


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.DECLARED, "none")
    here = hardware.detect()
    assert here.bandwidth is not None
    assert 5e8 < here.bandwidth < 2e12
    assert here.disk_bytes is not None
    assert 2**28 < here.memory_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setenv(machine.DECLARED, "NVIDIA H200:9.0:143771:570.10;NVIDIA H200:9.0:143771:570.10")
    two = hardware.detect()
    assert (two.count, two.total_bandwidth) == (2, 9.6e12)
    assert two.price_per_hour == pytest.approx(2 * 5.58)
    monkeypatch.setenv(machine.DECLARED, "Other:9.0:1024:1")
    assert "unknown" in hardware.detect().source


def test_the_table_names_sources_for_every_figure() -> None:
    found = hardware.table()
    names = [one.name for one in found]
    assert len(set(names)) == len(names)
    assert {"raspberry-pi-5-8gb", "apple-m4-max-128gb", "8x-h200"} <= set(names)
    for one in found:
        assert one.source
        assert one.bandwidth
        assert (one.price_per_hour is None) == (one.price_source is None), one.name
        assert (one.kind == "gpu") == bool(one.gpus), one.name
    with pytest.raises(ParamsError, match="did you mean h200"):
        hardware.find("h20")


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["plan", "--hardware", "l4", "--context", "512", "--concurrency", "2"]) == 0
    out = capsys.readouterr().out
    assert "6.8M parameters" in out
    assert "gguf-q4_k_m" in out
    assert "2 streams of 512 tokens" in out
    assert __main__.main(["plan", "--matrix"]) == 0
    assert "70B (Llama 3.1 70B)" in capsys.readouterr().out
    assert __main__.main(["plan", "--context", "0"]) == ParamsError.exit_code
    assert __main__.main(["plan", "nowhere"]) != 0
    assert "is not there" in capsys.readouterr().err


def test_the_matrix_names_hardware_that_is_large_enough() -> None:
    for cell in matrix().cells:
        assert hardware.find(cell.hardware).usable_bytes * cell.machines >= cell.needed_bytes
