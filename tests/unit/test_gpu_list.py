"""Working through the list of tests/gpu, what its pack holds, and the rows that come of a run."""

import json
import sys
import time
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.gpu import listing, packing, pieces, report, running, toolchain
from tests.gpu.listing import Item

RECORDED = Path(__file__).with_name("gpu_recorded.json")
"""What `run --small` wrote on a machine without a GPU."""

FIGURE = """
import json, pathlib, sys
figure = {"what": "half", "value": 1.5, "unit": "s", "gpu_bytes": None, "note": ""}
pathlib.Path(sys.argv[1]).write_text(json.dumps({"about": {"device": "a"}, "figures": [figure]}))
"""
SCRIPTS = {
    "a/good": FIGURE,
    "a/fails": FIGURE + "raise SystemExit('no such kernel')",
    "a/hangs": FIGURE + "import time; time.sleep(60)",
    "a/after": FIGURE,
    "a/needs": FIGURE,
    "b/slow": "import time; time.sleep(1)",
    "b/beside": "import time; time.sleep(0.3)",
}


@pytest.fixture
def do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run items whose processes are scripts; return what was written."""

    def command(item: Item, pack: Path, work: Path, *, small: bool) -> list[str]:
        return [sys.executable, "-c", SCRIPTS[item.name], str(running.result(work, item.name))]

    monkeypatch.setattr(running, "command", command)

    def run(*items: Item, seconds: float = 60, again: Sequence[str] = ()) -> dict[str, Any]:
        state = running.State(tmp_path / "work", tmp_path / "out", small=False)
        state.forget(again)
        worker = running.Run(state, tmp_path, tmp_path / "work", small=False, deadline=time.monotonic() + seconds)
        worker.all(items)
        found: dict[str, Any] = json.loads((tmp_path / "out/gpu.json").read_text())
        return found

    for name in ("work", "out"):
        (tmp_path / name).mkdir()
    return run


def test_what_fails_or_hangs_costs_the_next_nothing(do: Any) -> None:
    found = do(
        Item("a/good", 30),
        Item("a/fails", 30),
        Item("a/hangs", 1),
        Item("a/needs", 30, ("a/fails",)),
        Item("a/after", 30),
    )["items"]
    assert {name: item["state"] for name, item in found.items()} == {
        "a/good": "done",
        "a/fails": "failed",
        "a/hangs": "ended at its limit",
        "a/needs": "not run",
        "a/after": "done",
    }
    assert "no such kernel" in found["a/fails"]["said"]
    assert found["a/hangs"]["figures"][0]["value"] == 1.5  # told before it hung
    assert found["a/hangs"]["seconds"] < 10


def test_what_does_not_fit_the_budget_is_told_and_done_by_the_next_run(do: Any) -> None:
    first = do(Item("a/good", 8), Item("a/after", 1000), seconds=20)["items"]
    assert (first["a/good"]["state"], first["a/after"]["state"]) == ("done", "not reached")
    second = do(Item("a/good", 8), Item("a/after", 30), seconds=20)["items"]
    assert second["a/good"] == first["a/good"]  # not done again
    assert second["a/after"]["state"] == "done"
    third = do(Item("a/good", 8), Item("a/after", 30), again=["a/good"])["items"]
    assert third["a/good"]["seconds"] != first["a/good"]["seconds"]
    assert third["a/after"] == second["a/after"]


def test_lanes_run_beside_each_other_but_for_what_must_be_alone(do: Any) -> None:
    items = do(
        Item("b/slow", 30, lane="cpu"),
        Item("b/beside", 30, alone=True),
        Item("a/good", 30),
        Item("a/after", 30, lane="cpu"),
    )["items"]
    assert items["b/slow"]["beside"] == ["a/good"]  # no lane is idle because something waits to be alone
    assert items["b/beside"]["beside"] == []
    assert list(items) == ["a/good", "b/slow", "b/beside", "a/after"]


def test_each_item_needs_only_what_stands_before_it() -> None:
    for number, item in enumerate(listing.LIST):
        assert set(item.needs) <= set(listing.NAMES[:number]), item.name
    assert [item.name for item in listing.chosen(["random/gptq"])] == [
        "random/checkpoint",
        "random/reference",
        "random/gptq",
    ]
    with pytest.raises(SystemExit, match="no such item"):
        listing.chosen(["random/gptx"])


def test_a_pack_is_not_installed_from_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"python -m tests\.gpu pack"):
        running.install(tmp_path, tmp_path / "work")


def test_a_pack_over_its_limit_names_the_largest() -> None:
    sizes = [packing.Size("1", "wheels/large.whl", 2**21), packing.Size("1", "wheels/small.whl", 2**10)]
    packing.within(sizes, 2**22)
    with pytest.raises(SystemExit, match=r"part 1 has 2\.0 MiB.*\n.*large\.whl"):
        packing.within(sizes, 2**20)


def test_what_a_wheel_needs_and_nobody_has_is_named(tmp_path: Path) -> None:
    needs = ["Requires-Dist: numpy", "Requires-Dist: rare>=2", "Requires-Dist: old; python_version < '3.12'"]
    wheel = tmp_path / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some-1.0.dist-info/METADATA", "\n".join(["Name: some", *needs]))
    contents = {"python": "3.12", "there": ["numpy"], "unneeded": {}}
    assert packing.unmet([wheel], contents) == ["rare, which some-1.0-py3-none-any.whl needs"]


def test_all_that_is_packed_has_a_tested_version() -> None:
    contents = tomllib.loads(packing.CONTENTS.read_text())
    wanted = [*contents["wheels"], *contents["built"]]
    assert all("==" in pin for pin in packing.pinned(wanted))
    assert not set(wanted) & set(contents["there"])


def test_a_checkpoint_comes_back_of_its_pieces(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    levels = random.integers(0, 16, (64, 64)).reshape(-1, pieces.BLOCK)
    levels[:, 0], levels[:, 1] = 0, 15
    grid = torch.from_numpy((levels * 0.125 - 1).astype(np.float32).reshape(64, 64)).to(torch.bfloat16)
    rough = torch.from_numpy(random.normal(size=(64, 64)).astype(np.float32)).to(torch.bfloat16)
    source, first, second, out = (tmp_path / name for name in ("source", "first", "second", "out"))
    for folder in (source, first, second):
        folder.mkdir()
    save_file({"grid": grid, "rough": rough, "norm": grid[0].clone()}, source / "model.safetensors")
    (source / "config.json").write_text('{"num_hidden_layers": 1}')
    files = dict(pieces.encode(source))
    for name, content in files.items():
        (first if name == pieces.INDEX else second).joinpath(name).write_bytes(content)
    assert pieces.missing([first, second]) == []
    assert "grid.npz" in pieces.missing([first])
    assert pieces.missing([second]) == [pieces.INDEX]
    pieces.decode([first, second], out)
    found = load_file(out / "model.safetensors")
    assert torch.equal(found["grid"], grid)  # what lies on a grid of 16 steps loses nothing
    assert torch.equal(found["norm"], grid[0])
    off = (found["rough"].float() - rough.float()).norm() / rough.float().norm()
    assert 0.01 < off < 0.1


def test_packages_of_cublas_are_laid_out_to_link_with(tmp_path: Path) -> None:
    package, into = tmp_path / "package", tmp_path / "cuda"
    names = ("cublas_v2.h", "libcublas.so.13", "libcublasLt.so.13")
    for name in names:
        package.mkdir(exist_ok=True)
        (package / name).write_text(name)
    toolchain.link_cublas(package.glob("*.h"), package.glob("lib*"), into)
    assert (into / "include/cublas_v2.h").read_text() == "cublas_v2.h"
    assert {path.name for path in (into / "lib").iterdir()} == {*names[1:], "libcublas.so", "libcublasLt.so"}
    assert (into / "lib/libcublasLt.so").read_text() == "libcublasLt.so.13"


def test_rows_of_a_recorded_run() -> None:
    found = report.load(RECORDED)
    rows = [line for line in report.text(found).splitlines() if line.startswith("| ")][2:]
    figures = sum(len(item["figures"]) for item in found["items"].values())
    unfinished = [name for name, item in found["items"].items() if item["state"] != running.DONE]
    assert len(rows) == figures + len(unfinished)
    assert set(found["items"]) == set(listing.NAMES)
    assert any(row.startswith("| random: gptq-int4, perplexity ratio | ") for row in rows)
    assert all(row.count(" | ") == 3 for row in rows), rows


def test_a_row_says_what_failed_and_what_ran_beside() -> None:
    figure = {"what": "built", "value": 1234.5, "unit": "s", "gpu_bytes": 2**31, "note": "a|b"}
    failed = {"state": "failed", "said": "Traceback\nMemoryError: none left", "figures": [figure], "beside": ["x/y"]}
    written = report.text({"format": 1, "small": False, "about": {"device": "H"}, "items": {"random/gptq": failed}})
    assert "| random: built | 1,234 s | 2.00 GiB | a\\|b; beside x/y |" in written
    assert "| random/gptq | failed |  | MemoryError: none left |" in written


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"format": 2}')
    with pytest.raises(SystemExit, match="format 2, expected 1"):
        report.load(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(SystemExit, match="not what"):
        report.load(tmp_path / "x.json")
