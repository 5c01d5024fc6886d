"""From a machine without a GPU to one that has it and back: what is built, what is restored, and what is left alone."""

import sys
from pathlib import Path

import pytest

from tests.e2e.workspace import ROOT, Workspace, made

STANDIN = ROOT / "tests" / "support" / "tensorrt_llm_standin.py"
GPU = "NVIDIA H100 80GB HBM3:9.0:81559:580.65.06"
OTHER = "NVIDIA L4:8.9:23034:580.65.06"
GATED, PLAIN = "trtllm-fp8", "gguf-q8_0"
STAGES = (f"artifact@{GATED}", f"quality@{PLAIN}")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """One artifact that needs a GPU and one that does not; what builds the former is a stand-in for its container."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "podman").write_text(f'#!/bin/sh\nexec {sys.executable} -B {STANDIN} "$@"\n')
    (tools / "podman").chmod(0o755)
    workspace = made(tmp_path / "flow", (PLAIN, GATED), profile="nvidia")
    workspace.environment["STANDIN_TOOLS"] = str(tools)
    workspace.environment["PATH"] = f"{tools}:{workspace.env['PATH']}"
    return workspace


def unavailable(workspace: Workspace) -> object:
    return workspace.read(f"artifacts/{GATED}/assay.json")["unavailable"]


def test_only_what_the_gpu_decides_is_built_and_a_way_back_restores_it(workspace: Workspace) -> None:
    workspace.environment["ASSAY_GPUS"] = "none"
    first = workspace.repro(*STAGES)
    assert {f"artifact@{GATED}", f"artifact@{PLAIN}", f"quality@{PLAIN}"} <= set(first)
    assert (
        unavailable(workspace) == "here: needs an NVIDIA GPU of compute capability 8.9 for fp8 with a KV cache in fp8"
    )

    workspace.environment["ASSAY_GPUS"] = GPU
    assert workspace.repro(*STAGES) == [f"artifact@{GATED}"]
    assert unavailable(workspace) is None
    built = (workspace.folder / f"artifacts/{GATED}/assay.json").read_bytes()
    assert (workspace.folder / f"artifacts/{GATED}/engine/rank0.engine").is_file()

    workspace.environment["ASSAY_GPUS"] = "none"
    assert workspace.repro(*STAGES) == []
    assert unavailable(workspace) is not None

    workspace.environment["ASSAY_GPUS"] = GPU
    assert workspace.repro(*STAGES) == []
    assert (workspace.folder / f"artifacts/{GATED}/assay.json").read_bytes() == built
    assert (workspace.folder / f"artifacts/{GATED}/engine/rank0.engine").is_file()

    workspace.environment["ASSAY_GPUS"] = OTHER
    assert workspace.repro(*STAGES) == [f"artifact@{GATED}"], "an engine is bound to its architecture"


def test_a_job_that_must_have_everything_fails_for_what_is_lacking(workspace: Workspace) -> None:
    workspace.environment |= {"ASSAY_GPUS": "none", "ASSAY_STRICT": "1"}
    done = workspace.run("dvc", "repro", f"artifact@{GATED}", check=False)
    assert done.returncode != 0
    assert f"{GATED} needs an NVIDIA GPU of compute capability 8.9 for fp8" in done.stderr
    assert not (workspace.folder / f"artifacts/{GATED}").exists()
