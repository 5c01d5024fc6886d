"""One artifact's tool crashes: the others go on, a winner is chosen, the exit code says so, and it is tried again."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.errors import FailedRowsError, NativeCrashError
from pipeline.toolchains import llama_cpp
from tests.e2e.workspace import Workspace, made

GOOD, BROKEN = "gguf-f16", "gguf-q8_0"
QUANTIZE = """#!/bin/sh
for word; do
    if [ "$word" = Q8_0 ] && [ ! -e {mended} ]; then echo "reading the model"; kill -SEGV $$; fi
done
exec {tool} "$@"
"""
PROGRAMS = ("sh", "bash", "env", "git", "uname")
"""All that the flow may find: no builder of images, which this test needs none of."""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A llama-quantize that dies of SIGSEGV for one of two types, until a file says that it is mended."""
    real = llama_cpp.find()
    standin = tmp_path / "llama.cpp"
    shutil.copytree(real.root, standin, symlinks=True, copy_function=os.link)
    tool = standin / "bin" / "llama-quantize"
    tool.unlink()
    tool.write_text(QUANTIZE.format(mended=tmp_path / "mended", tool=real.tool("llama-quantize")))
    tool.chmod(0o755)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in PROGRAMS:
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    workspace = made(tmp_path / "flow", (GOOD, BROKEN))
    workspace.params(tasks={"names": [], "limit": None})
    workspace.environment |= {"ASSAY_LLAMA_CPP": str(standin), "PATH": f"{Path(sys.executable).parent}:{programs}"}
    return workspace


def test_what_fails_is_a_row_and_the_run_goes_on(workspace: Workspace, tmp_path: Path) -> None:
    workspace.environment["ASSAY_STRICT"] = "1"
    strict = workspace.run("dvc", "repro", f"artifact@{BROKEN}", check=False)
    assert strict.returncode != 0
    assert f"exited with {NativeCrashError.exit_code}" in strict.stderr
    assert not (workspace.folder / "artifacts" / BROKEN).exists()
    del workspace.environment["ASSAY_STRICT"]

    first = workspace.run("dvc", "repro", check=False)
    assert first.returncode != 0
    assert f"failed to run: python -m pipeline outcome, exited with {FailedRowsError.exit_code}" in first.stderr
    again = f"dvc repro --force --single-item artifact@{BROKEN}"
    assert f"1 of 2 artifacts failed and were passed over; all else is done:\n  {BROKEN} failed in" in first.stderr
    assert again in first.stderr
    selection = workspace.read("selection.json")
    assert selection["winner"] == GOOD
    failure = workspace.read(f"artifacts/{BROKEN}/assay.json")["failure"]
    assert failure["reason"].startswith("llama-quantize Q8_0 was killed by SIGSEGV (")  # type: ignore[index]
    assert "  reading the model" in failure["log"]  # type: ignore[index]
    for stage in ("quality", "latency", "tasks"):
        assert workspace.read(f"measurements/{stage}/{BROKEN}.json")["failure"] == failure
    assert "reading the model" in workspace.read_text("report/index.html")
    (row,) = [
        line for line in workspace.read_text("report/report.md").splitlines() if line.startswith(f"| - | {BROKEN}")
    ]
    assert "failed in `artifact@gguf-q8_0`: llama-quantize Q8_0 was killed by SIGSEGV" in row
    assert again in workspace.run("python", "-m", "pipeline", "ranking").stdout

    second = workspace.run("dvc", "repro", check=False)
    assert second.returncode != 0
    assert "Running stage 'outcome'" in second.stdout
    assert "Running stage 'artifact" not in second.stdout, "a row that failed is not tried again by itself"

    (tmp_path / "mended").touch()
    workspace.run(*again.split())
    ran = workspace.repro()
    assert {f"quality@{BROKEN}", "selection", "outcome"} <= set(ran)
    assert f"quality@{GOOD}" not in ran
    assert workspace.read(f"artifacts/{BROKEN}/assay.json")["failure"] is None
    assert workspace.repro() == []
