"""What does not fit this machine is refused before a build begins, with both numbers."""

from pathlib import Path

import pytest

from pipeline import machine
from pipeline.backends import AnyRecipe
from pipeline.backends.awq.backend import Awq
from pipeline.backends.gguf.backend import Gguf
from pipeline.backends.gptq.backend import Gptq
from pipeline.backends.onnx.backend import Onnx
from pipeline.backends.safetensors.backend import Safetensors
from pipeline.errors import CapacityError
from pipeline.params import Params, load
from pipeline.sizing import hardware, read
from pipeline.sizing.estimate import Load
from pipeline.stages import prediction

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models/demo"


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(machine.DECLARED, "none")
    return load(ROOT / "params.yaml")


MEASURED = {
    "gguf-f16": (13_741_184, 139.8e6), "gguf-q8_0": (7_351_424, 131.0e6), "gguf-q6_k": (5_700_960, 132.3e6),
    "gguf-q5_k_m": (4_995_936, 129.9e6), "gguf-q4_k_m": (4_332_384, 131.4e6), "gguf-q3_k_m": (3_691_360, 129.4e6),
    "gguf-q2_k": (3_042_144, 130.6e6), "gptq-int8": (9_537_995, 805.6e6), "gptq-int4": (7_160_217, 710.6e6),
    "awq-int4": (7_100_787, 720.6e6), "onnx-fp32": (27_945_227, 444.5e6), "onnx-int8": (11_375_636, 431.1e6),
    "onnx-int4": (8_589_475, 427.4e6),
}  # fmt: skip
"""The demo's artifacts, in bytes, and the largest resident sets of gateway and engine, at 4 streams, on x86-64."""


@pytest.mark.parametrize("name", MEASURED)
def test_the_demo_fits_and_is_predicted(name: str, params: Params) -> None:
    """Size within 3 %, serving memory within 15 %."""
    estimate = prediction.predict(params, params.artifacts[name], DEMO)
    prediction.require_room(params, name, estimate)
    found, (bytes_, serving_bytes) = prediction.record(estimate), MEASURED[name]
    assert found.bytes == pytest.approx(bytes_, rel=0.03)
    assert found.serving_bytes == pytest.approx(serving_bytes, rel=0.15)
    assert found.serving_gpu_bytes is None


SMALLER, LARGER = (
    {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 20, "num_attention_heads": 16},
    {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
)
"""0.24 and 1.06 billion parameters: here weights and cache, not libraries, are most of it."""

RANDOM = (
    (SMALLER, Gguf(backend="gguf", quantization="Q8_0"), 1051.6e6),
    (SMALLER, Gguf(backend="gguf", quantization="Q4_K_M"), 1050.4e6),
    (SMALLER, Onnx(backend="onnx", precision="fp32"), 1660.0e6),
    (SMALLER, Onnx(backend="onnx", precision="int8"), 1027.9e6),
    (SMALLER, Onnx(backend="onnx", precision="int4"), 914.4e6),
    (SMALLER, Safetensors(backend="safetensors", dtype="bfloat16"), 1082.7e6),
    (LARGER, Gguf(backend="gguf", quantization="Q4_K_M"), 2744.4e6),
    (LARGER, Gptq(backend="gptq", bits=4), 2028.8e6),
    (LARGER, Awq(backend="awq"), 2026.7e6),
)


@pytest.mark.parametrize(("shape", "recipe", "serving_bytes"), RANDOM)
def test_serving_memory_of_larger_models_is_predicted(
    shape: dict[str, int], recipe: AnyRecipe, serving_bytes: float
) -> None:
    """Measured likewise on random weights: GGUF with 4096 tokens a slot, the others with 1024."""
    config = {
        **shape, "model_type": "llama", "vocab_size": 4096, "num_key_value_heads": shape["num_attention_heads"] // 2,
        "head_dim": 64, "tie_word_embeddings": False,
        "max_position_embeddings": 4096 if recipe.backend == "gguf" else 1024,
    }  # fmt: skip
    load = Load(streams=4, context_tokens=4096, used_tokens=160)
    found = recipe.estimate(read.counted("random", config), load).serving.bytes
    assert found == pytest.approx(serving_bytes, rel=0.15)


def test_too_little_memory_or_disk_is_said_with_numbers_unless_forced(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate = prediction.predict(params, params.artifacts["awq-int4"], DEMO)
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 10**9)
    with pytest.raises(CapacityError, match=r"building takes 1.83 GB of memory, of 950 MB") as caught:
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
    raw["serving"]["concurrency"] = [256]
    raw["selection"]["concurrency"] = 256
    many = Params.model_validate(raw)
    estimate = prediction.predict(many, many.artifacts["gguf-f16"], DEMO)
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 5 * 10**8)
    with pytest.raises(CapacityError, match=r"gguf-f16 does not fit.*: serving takes .* cache 805 MB\), of 475 MB"):
        prediction.require_room(many, "gguf-f16", estimate)
