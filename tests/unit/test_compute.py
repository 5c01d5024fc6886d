"""What models run on: chosen once, and kept from libraries that would choose for themselves."""

import os
from pathlib import Path

import pytest

from pipeline import compute, machine
from pipeline.compute import Compute
from pipeline.errors import RequirementError
from pipeline.records import Gpu

L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", memory_mib=23034, driver="570.10")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder of programs, with none in it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("ASSAY_GPUS", raising=False)
    return tmp_path


def install(path: Path) -> None:
    (path / "nvidia-smi").write_text("#!/bin/sh\necho '0, GPU-1, NVIDIA L4, 8.9, 23034, 570.10'\n")
    (path / "nvidia-smi").chmod(0o755)


def test_a_gpu_is_used_where_there_is_one(path: Path) -> None:
    cores = machine.usable_cores()
    assert compute.here() == Compute(threads=cores)
    install(path)
    found = compute.here(threads=3)
    assert found == compute.here(threads=3, device="cuda") == Compute(threads=3, gpus=(L4,))
    assert (found.device, found.name) == ("cuda", "NVIDIA L4")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_gpu_that_is_not_to_be_used_is_hidden(path: Path) -> None:
    install(path)
    found = compute.here(threads=3, device="cpu")
    assert (found.gpus, found.device, found.name) == ((), "cpu", "cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert machine.gpus() == ()
    assert machine.installed() == (L4,)


def test_without_a_gpu_asking_for_one_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequirementError, match="device cuda was asked for"):
        compute.here(device="cuda")
    install(path)
    monkeypatch.setenv("ASSAY_GPUS", "none")
    with pytest.raises(RequirementError, match="look at CUDA_VISIBLE_DEVICES and ASSAY_GPUS"):
        compute.here(device="cuda")


def test_gpus_that_are_only_declared_run_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_GPUS", "NVIDIA L4:8.9:23034:570.10")
    assert machine.gpus() == (L4,)
    assert compute.here(threads=1) == Compute(threads=1)
