"""Which engine serves which artifact."""

from pathlib import Path

import pytest

from containers.engines import choose, engine
from containers.engines.llama_cpp.engine import LlamaCppEngine
from containers.engines.python import PythonEngine
from containers.engines.vllm.engine import VllmEngine
from pipeline.compute import Compute
from pipeline.errors import RequirementError, StorageError
from pipeline.params import RECIPE
from pipeline.records import FILE, Artifact, EngineName, Gpu

CPU = Compute(threads=1)
GPU = Compute(threads=1, gpus=(Gpu(name="L4", compute_capability="8.9", memory_mib=23034, driver="570.10"),))


def artifact(folder: Path, unavailable: str | None = None, **recipe: str | int) -> Path:
    record = Artifact(name="it", recipe=dict(recipe), checkpoint="", calibration="", digest="", unavailable=unavailable)
    record.save(folder / FILE)
    return folder


def test_a_gguf_file_is_served_by_llama_server(tmp_path: Path) -> None:
    folder = artifact(tmp_path, backend="gguf", quantization="Q4_K_M")
    assert isinstance(engine(folder, compute=CPU, slots=1, context_tokens=None), LlamaCppEngine)


def test_a_packed_checkpoint_is_served_by_a_python_runtime_and_by_vllm_on_a_gpu(tmp_path: Path) -> None:
    folder = artifact(tmp_path, backend="gptq", bits=4)
    assert isinstance(engine(folder, compute=CPU, slots=1, context_tokens=None), PythonEngine)
    assert isinstance(engine(folder, compute=GPU, slots=1, context_tokens=None), VllmEngine)


@pytest.mark.parametrize(
    ("recipe", "on_cpu", "on_gpu"),
    [
        ({"backend": "gguf", "quantization": "Q4_K_M"}, "llama_cpp", "llama_cpp"),
        ({"backend": "onnx", "precision": "int8"}, "onnxruntime", "onnxruntime"),
        ({"backend": "gptq", "bits": 4}, "transformers", "vllm"),
        ({"backend": "gptq", "bits": 3}, "transformers", "transformers"),
        ({"backend": "gptq", "bits": 4, "symmetric": False}, "transformers", "transformers"),
        ({"backend": "awq"}, "transformers", "vllm"),
        ({"backend": "safetensors", "dtype": "bfloat16"}, "transformers", "vllm"),
    ],
)
def test_recipe_and_machine_choose(recipe: dict[str, str], on_cpu: EngineName, on_gpu: EngineName) -> None:
    read = RECIPE.validate_python(recipe)
    assert (choose(read, CPU), choose(read, GPU)) == (on_cpu, on_gpu)
    assert choose(read, GPU, on_cpu) == on_cpu, "what was measured without a GPU may be served beside one"


def test_an_engine_that_is_fixed_is_not_replaced() -> None:
    packed = RECIPE.validate_python({"backend": "gptq", "bits": 4})
    with pytest.raises(RequirementError, match="vllm needs an NVIDIA GPU"):
        choose(packed, CPU, "vllm")
    with pytest.raises(RequirementError, match="onnxruntime does not serve gptq artifacts; vllm or transformers does"):
        choose(packed, GPU, "onnxruntime")


def test_an_artifact_for_gpus_alone_is_served_by_its_own_engine() -> None:
    built = RECIPE.validate_python({"backend": "tensorrt_llm", "quantization": "fp8"})
    assert choose(built, GPU) == "tensorrt_llm"
    with pytest.raises(RequirementError, match="tensorrt_llm needs an NVIDIA GPU"):
        choose(built, CPU)


def test_what_could_not_be_built_is_not_served(tmp_path: Path) -> None:
    folder = artifact(tmp_path, "phi3 has a joined gate_up_proj", backend="gptq", bits=4)
    with pytest.raises(StorageError, match="phi3 has"):
        engine(folder, compute=CPU, slots=1, context_tokens=None)


def test_a_folder_without_a_record_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"assay\.json"):
        engine(tmp_path, compute=CPU, slots=1, context_tokens=None)
