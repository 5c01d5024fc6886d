"""`dvc plots` draws the report's own data by the report's own templates."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import paths
from pipeline.report import page, plots
from tests.support.browser import browser, executable
from tests.support.reports import finished

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with dvc.yaml's plots and the data of a run, committed; the workspace holds another run's."""
    monkeypatch.chdir(tmp_path)
    shown = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"plots": shown}, sort_keys=False))
    # DVC's own page loads Vega from the network; a page that brings it along shows the same.
    (tmp_path / "page.html").write_text(f"<script>{page._library()}</script><body>{{plot_divs}}</body>")
    _write(5)
    run("git", "init", "-q")
    run(sys.executable, "-m", "dvc", "init", "-q")
    run("git", "add", "-A")
    run("git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", "commit", "-qm", "one run")
    _write(6)
    return tmp_path


def _write(count: int) -> None:
    selection, found = finished(count)
    backends = {name: str(recipe["backend"]) for name, recipe in found.recipes.items()}
    plots.write(paths.PLOTS, selection, backends, {name: one.served for name, one in found.latency.items()})


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def specs(html: str) -> list[dict[str, object]]:
    return [json.loads(one) for one in re.findall(r"var spec = (\{.*\});", html)]


@pytest.mark.parametrize(("command", "revisions"), [("show", {"workspace"}), ("diff", {"workspace", "HEAD"})])
def test_dvc_draws_the_reports_plots(repository: Path, command: str, revisions: set[str]) -> None:
    run(sys.executable, "-m", "dvc", "plots", command, "-o", "out", "--html-template", "page.html")
    out = repository / "out" / "index.html"
    found = specs(out.read_text())
    wanted = yaml.safe_load((repository / "dvc.yaml").read_text())["plots"]
    assert len(found) == len(wanted)
    for spec in found:
        assert "<DVC_METRIC" not in json.dumps(spec), "an anchor that DVC does not know"
        assert {row["rev"] for row in spec["data"]["values"]} == revisions  # type: ignore[index]
    if executable() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with browser(repository) as tab:
        tab.open(out.as_uri())
        tab.until(f"document.querySelectorAll('svg.marks').length === {len(wanted)}")
        texts = set(tab.run("[...document.querySelectorAll('svg text')].map((one) => one.textContent)"))
        assert {"gguf-4", "gptq-1, 4 streams", "served tokens/s", "TTFT of each request"} <= texts
        assert tab.errors == []
