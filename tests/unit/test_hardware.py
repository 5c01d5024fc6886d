"""Which GPUs there are, and what becomes of an artifact that needs one."""

import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline import machine, paths
from pipeline.errors import ParamsError, RequirementError
from pipeline.records import Artifact, Gpu, Hardware
from pipeline.sizing import hardware as sizing
from pipeline.stages import hardware

L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", memory_mib=23034, driver="570.10")
H200 = Gpu(name="NVIDIA H200", compute_capability="9.0", memory_mib=143771, driver="570.10")

TOLD = """0, GPU-1a2b, NVIDIA L4, 8.9, 23034, 570.10
1, GPU-3c4d, NVIDIA H200, 9.0, 143771, 570.10
"""


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an nvidia-smi on the path, and nothing else."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.delenv("ASSAY_GPUS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, (L4, H200)),
        ("", ()),
        ("-1", ()),
        ("1", (H200,)),
        ("GPU-1a", (L4,)),
        ("1,0", (H200, L4)),
        ("0,7,1", (L4,)),
    ],
)
def test_the_gpus_are_those_that_cuda_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: Sequence[Gpu]
) -> None:
    driver(tmp_path, monkeypatch, f"cat <<END\n{TOLD}END")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus() == tuple(expected)
    assert machine.fingerprint().gpus == tuple(expected)


def test_a_gpu_without_memory_of_its_own_has_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, monkeypatch, "echo '0, GPU-1, NVIDIA GB10, 12.1, [N/A], 580.95'")
    assert [gpu.memory_mib for gpu in machine.gpus()] == [machine.memory_bytes() // 2**20]
    found = sizing.detect(tmp_path)
    assert (found.shared, found.memory_bytes // 2**20) == (True, machine.memory_bytes() // 2**20)


def test_tools_without_a_driver_are_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    driver(tmp_path, monkeypatch, "echo couldn\\'t communicate with the NVIDIA driver; exit 9")
    assert machine.gpus() == ()
    assert "couldn't communicate with the NVIDIA driver" in capsys.readouterr().err


def test_a_declaration_takes_the_place_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, monkeypatch, f"cat <<END\n{TOLD}END")
    monkeypatch.setenv("ASSAY_GPUS", "none")
    assert machine.gpus() == ()
    monkeypatch.setenv("ASSAY_GPUS", "NVIDIA H200:9.0:143771:570.10; NVIDIA L4:8.9:23034:570.10")
    assert machine.gpus() == (H200, L4)
    monkeypatch.setenv("ASSAY_GPUS", "NVIDIA H200")
    with pytest.raises(ParamsError, match="ASSAY_GPUS: 'NVIDIA H200' is no GPU; expected"):
        machine.gpus()


def test_what_is_lacking_is_a_row_and_an_error_when_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    built = Artifact(name="fp8", recipe={}, checkpoint="c", calibration="e", digest="d")
    never = built.model_copy(update={"unavailable": "no such architecture"})
    Hardware(name="fp8", lacks=None).save(paths.hardware("fp8"))
    assert hardware.unavailable(built) is None
    assert hardware.unavailable(never) == "no such architecture"
    Hardware(name="fp8", lacks="needs an NVIDIA GPU").save(paths.hardware("fp8"))
    assert hardware.unavailable(built) == "here: needs an NVIDIA GPU"
    Hardware(name="fp8", lacks="needs an NVIDIA GPU", strict=True).save(paths.hardware("fp8"))
    with pytest.raises(RequirementError, match="fp8 needs an NVIDIA GPU, which this machine does not have"):
        hardware.unavailable(built)
