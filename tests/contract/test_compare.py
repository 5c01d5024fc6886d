"""assay compare on real git and DVC repositories: revisions, experiments, folders, and what is missing."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.browser import browser, executable
from tests.support.repositories import Repository
from tests.support.runs import Made, write

ARTIFACTS = {"q4": {"loss": 0.005}, "q8": {"loss": 0.001}, "gone": {"loss": 0.002}}


@pytest.fixture(scope="module")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository.create(tmp_path_factory.mktemp("compare") / "repository", ARTIFACTS)


@pytest.fixture
def repository(_finished: Repository, tmp_path: Path) -> Repository:
    """A copy that a test may change."""
    shutil.copytree(_finished.folder, tmp_path / "copy", symlinks=True)
    return Repository(tmp_path / "copy")


def compare(repository: Repository, *arguments: str) -> subprocess.CompletedProcess[str]:
    return repository.run("assay", "compare", *arguments, check=False)


def row(text: str, artifact: str, metric: str) -> list[str]:
    """Return the cells of one change."""
    (found,) = re.findall(rf"^\| {artifact} \| `{metric}` \| (.*) \|$", text, re.MULTILINE)
    return [cell.strip() for cell in str(found).split(" | ")]


def test_nothing_changed(repository: Repository) -> None:
    done = compare(repository, "--fail-on", "unclear")
    assert done.returncode == 0, done.stderr
    assert "**The winner is still q4.** Of what both sides measured: 12 same." in done.stdout
    assert "What changed" not in done.stdout


def test_a_worse_artifact_fails_the_run_with_a_code_of_its_own(repository: Repository) -> None:
    repository.ask({**ARTIFACTS, "q4": {"loss": 0.025}, "new": {"unavailable": "needs a GPU"}})
    repository.run("dvc", "repro")
    done = compare(repository, "--fail-on", "worse", "--html", "comparison/page.html")
    assert done.returncode == 13
    assert re.search(r"HEAD \([0-9a-f]{7}\) to the workspace: \d worse", done.stderr)
    old, new, difference, paired, verdict = row(done.stdout, "q4", "perplexity_ratio")
    assert (old, new, paired, verdict) == ("+0.51 %", "+2.54 %", "yes", "worse")
    assert difference == "+2.02 [+2.02, +2.02] %", "the text's own chance cancels"
    assert "| new | - | unavailable: needs a GPU | added |" in done.stdout
    page = (repository.folder / "comparison/page.html").read_text()
    assert "<code>perplexity_ratio</code>" in page
    assert not re.search(r"(src|href)=\"(?!#|data:)", page), "a page of its own, that asks for nothing"


def test_better_is_no_failure_and_removed_is_told(repository: Repository) -> None:
    repository.ask({"q4": {"loss": 0.001, "rate": 200.0}, "q8": ARTIFACTS["q8"]})
    repository.run("dvc", "repro")
    done = compare(repository, "--fail-on", "worse")
    assert done.returncode == 0, done.stderr
    assert row(done.stdout, "q4", "perplexity_ratio")[-1] == "better"
    assert row(done.stdout, "q4", "served_output_tokens_per_second")[-1] == "better"
    assert "| gone | passes | - | removed |" in done.stdout


def test_revisions_and_experiments_are_read_without_a_checkout(repository: Repository) -> None:
    repository.ask({**ARTIFACTS, "q4": {"loss": 0.025}})
    repository.run("dvc", "repro")
    repository.commit("worse")
    repository.run("dvc", "exp", "run", "-q", "-n", "trial", "-S", "run.yaml:artifacts.q8.loss=0.1")
    repository.run("git", "checkout", "-q", "--", ".")
    shutil.rmtree(repository.folder / "measurements")
    done = compare(repository, "HEAD~1", "HEAD")
    assert row(done.stdout, "q4", "perplexity_ratio")[3:] == ["yes", "worse"]
    done = compare(repository, "HEAD", "trial")
    assert row(done.stdout, "q8", "perplexity_ratio")[3:] == ["yes", "worse"]
    assert "| q4 |" not in done.stdout
    assert not (repository.folder / "measurements").exists()


def test_folders_are_compared_outside_of_any_repository(tmp_path: Path) -> None:
    for name, loss in (("old", 0.001), ("new", 0.03)):
        write(tmp_path / name, {"a": Made(loss=loss)})
    done = compare(Repository(tmp_path), "old", "new")
    assert done.stdout.startswith("# old → new\n")
    assert row(done.stdout, "a", "perplexity_ratio")[3:] == ["yes", "worse"]


@pytest.mark.skipif(executable() is None, reason="Chromium is not installed: apt-get install chromium")
def test_the_page_sorts_fits_a_phone_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    for name, loss in (("old", 0.001), ("new", 0.03)):
        write(tmp_path / name, {"a": Made(loss=loss), "b": Made(loss=loss / 2, rate=10 / loss)})
    compare(Repository(tmp_path), "old", "new", "--html", "page.html")
    address = (tmp_path / "page.html").as_uri()
    with browser(tmp_path) as tab:
        tab.open(address)
        tab.until("document.readyState === 'complete' && document.querySelector('#what-changed') !== null")
        tab.click("#what-changed thead th:nth-child(2) button")
        metrics = tab.run(
            "[...document.querySelectorAll('#what-changed tbody tr')].map((row) => row.cells[1].innerText)"
        )
        tab.screen(390, 844, phone=True)
        wide = tab.run("document.documentElement.scrollWidth")
        assert (set(tab.requests), tab.errors) == ({address}, [])
    assert metrics == sorted(metrics)
    assert len(set(metrics)) > 2
    assert wide <= 390


def test_times_of_another_machine_are_unclear_and_another_text_is_not_paired(tmp_path: Path) -> None:
    write(tmp_path / "old", {"a": Made(loss=0.001, rate=100)})
    write(tmp_path / "new", {"a": Made(loss=0.03, rate=10)}, machine="there", text="another")
    done = compare(Repository(tmp_path), "old", "new")
    assert row(done.stdout, "a", "served_output_tokens_per_second")[-1] == "unclear: another machine"
    assert row(done.stdout, "a", "perplexity_ratio")[3] == "no"


def test_speeds_of_a_busy_machine_are_never_called_worse(tmp_path: Path) -> None:
    """Nor is an artifact that missed a limit on them, unless a quiet machine measured it."""
    cores = "other processes ran (cc1plus) 1.00 of 2 processors"
    write(tmp_path / "old", {"a": Made(rate=100), "b": Made(rate=100, least_rate=50), "c": Made(rate=100)})
    slow = {"a": Made(rate=10, busy=cores), "b": Made(rate=10, least_rate=50, busy=cores), "c": Made(rate=100)}
    write(tmp_path / "new", slow)
    write(tmp_path / "quiet", {"b": Made(rate=10, least_rate=50)})
    done = compare(Repository(tmp_path), "old", "new", "--fail-on", "worse")
    assert done.returncode == 0, done.stdout
    assert row(done.stdout, "a", "served_output_tokens_per_second")[-1] == (
        f"unclear: cannot tell, new was measured on a busy machine ({cores})"
    )
    assert re.search(r"\| b \| passes \| .* cannot tell, it was measured on a busy machine \| unclear \|", done.stdout)
    assert "new: **Not to be trusted" in done.stdout
    assert "| c | `served_output_tokens_per_second`" not in done.stdout, "the same"
    assert compare(Repository(tmp_path), "old", "new", "--fail-on", "unclear").returncode == 13
    assert compare(Repository(tmp_path), "old", "quiet", "--fail-on", "worse").returncode == 13


def test_data_that_is_nowhere_are_named(repository: Repository) -> None:
    repository.ask({**ARTIFACTS, "q4": {"loss": 0.025}})
    repository.run("dvc", "repro")
    shutil.rmtree(repository.folder / ".dvc/cache")
    done = compare(repository)
    assert re.search(r"HEAD \(\w{7}\): neither the cache nor the remote has `measurements/quality/q4.npz`", done.stdout)
    assert row(done.stdout, "q4", "perplexity_ratio")[3] == "no"


def test_another_versions_records_and_wrong_names_are_said_in_a_line(repository: Repository) -> None:
    selection = repository.folder / "selection.json"
    record = json.loads(selection.read_text())
    selection.write_text(json.dumps({**record, "champion": record.pop("winner")}))
    repository.commit("another version's")
    selection.unlink()
    repository.run("git", "rm", "-q", "--cached", "selection.json")
    repository.commit("none")
    foreign, none, wrong = (compare(repository, revision, "HEAD~2") for revision in ("HEAD~1", "HEAD", "nope"))
    assert (foreign.returncode, none.returncode, wrong.returncode) == (10, 10, 2)
    assert "written by another version of Assay" in foreign.stderr
    assert "champion" in foreign.stderr
    assert "holds no selection.json" in none.stderr
    assert "no git revision, no DVC experiment, and no folder" in wrong.stderr
    assert all("Traceback" not in done.stderr for done in (foreign, none, wrong))
