"""Which engine serves which artifact."""

from pathlib import Path

import pytest

from containers.engines import engine
from containers.engines.llama_cpp.engine import LlamaCppEngine
from containers.engines.python import PythonEngine
from pipeline.compute import Compute
from pipeline.errors import StorageError
from pipeline.records import FILE, Artifact


def artifact(folder: Path, unavailable: str | None = None, **recipe: str | int) -> Path:
    record = Artifact(name="it", recipe=dict(recipe), checkpoint="", calibration="", digest="", unavailable=unavailable)
    record.save(folder / FILE)
    return folder


def test_a_gguf_file_is_served_by_llama_server(tmp_path: Path) -> None:
    folder = artifact(tmp_path, backend="gguf", quantization="Q4_K_M")
    assert isinstance(engine(folder, compute=Compute(threads=1), slots=1, context_tokens=None), LlamaCppEngine)


def test_a_packed_checkpoint_is_served_by_a_python_runtime(tmp_path: Path) -> None:
    folder = artifact(tmp_path, backend="gptq", bits=4)
    assert isinstance(engine(folder, compute=Compute(threads=1), slots=1, context_tokens=None), PythonEngine)


def test_what_could_not_be_built_is_not_served(tmp_path: Path) -> None:
    folder = artifact(tmp_path, "phi3 has a joined gate_up_proj", backend="gptq", bits=4)
    with pytest.raises(StorageError, match="phi3 has"):
        engine(folder, compute=Compute(threads=1), slots=1, context_tokens=None)


def test_a_folder_without_a_record_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"assay\.json"):
        engine(tmp_path, compute=Compute(threads=1), slots=1, context_tokens=None)
