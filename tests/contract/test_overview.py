"""assay overview over real Git and DVC repositories: winners, releases, what is not measured, what cannot be read."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StorageError
from pipeline.records import Release
from tests.support import runs
from tests.support.browser import browser, executable
from tests.support.repositories import Repository

ARTIFACTS: dict[str, dict[str, Any]] = {
    "q4": {"loss": 0.005},
    "q8": {"loss": 0.001},
    "gone": {"unavailable": "needs an NVIDIA GPU"},
}


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that was released as 1.2.3 and became worse since, and one that was never released."""
    folder = tmp_path_factory.mktemp("overview")
    first = Repository.create(folder / "first", ARTIFACTS)
    first.run("git", "tag", "v1.2.3")
    released = Release(
        registry="registry.example.com", repository="team/model", digest="sha256:0", tag="1.2.3", referrers=(),
        signed=False, bytes_sent=0, bytes_skipped=0,
    )  # fmt: skip
    released.save(first.folder / "release.json")
    first.ask({**ARTIFACTS, "q4": {"loss": 0.025}})
    first.run("dvc", "repro", "-q")
    first.commit("worse")
    (first.folder / "params.yaml").write_text("artifacts: {q4: {}, q8: {}, gone: {}, added: {}}\n")
    Repository.create(folder / "second", {"tiny": {"loss": 0.002, "busy": "another process took 1.5 cores"}})
    (folder / "empty").mkdir()
    return folder


def overview(folder: Path, *arguments: str) -> str:
    return Repository(folder).run("assay", "overview", *arguments).stdout


def row(text: str, project: str) -> dict[str, str]:
    """Return a project's cells by their columns."""
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    (found,) = (line for line in lines if line[0] == project)
    return dict(zip((cell.strip() for cell in lines[0]), found, strict=True))


def test_each_project_is_a_row_with_its_winner_and_what_became_of_it(projects: Path) -> None:
    text = overview(projects, "first", "second")
    assert text.startswith("# 2 projects\n")
    first, second = row(text, "first"), row(text, "second")
    assert (first["winner"], second["winner"]) == ("q4", "tiny")
    assert first["released"] == "1.2.3"
    assert first["since the release"] == "0 better, 2 worse"
    assert second["released"] == second["since the release"] == "-"
    assert first["pass"] == "2 of 3"
    assert "`perplexity_ratio` of q4 is worse" in text
    assert "- **first**: `gone`: needs an NVIDIA GPU" in text
    assert "- **first**: `added`: is in params.yaml, and was not part of the last run" in text
    assert "- **second**: " in text.partition("Measured on a busy machine")[2]


def test_a_revision_of_a_project_is_a_row_of_its_own(projects: Path) -> None:
    text = overview(projects, "first@v1.2.3", "first")
    ratio = "perplexity vs reference, %"
    assert row(text, "first@v1.2.3")[ratio].startswith("+0.5")
    assert row(text, "first")[ratio].startswith("+2.5")


def test_what_cannot_be_read_is_told_and_keeps_out_none_of_the_others(projects: Path) -> None:
    text = overview(projects, "first", "empty", "nowhere", "first@nothing")
    assert text.startswith("# 1 project\n")
    told = text.partition("Not read")[2]
    assert "**empty**: empty holds no selection.json: nothing was finished there" in told
    assert "**nowhere**: is no folder; name a project" in told
    assert "**first@nothing**: " in told
    nothing = Repository(projects).run("assay", "overview", "empty", check=False)
    assert nothing.returncode == StorageError.exit_code


def test_a_project_within_a_repository_is_read_at_a_revision_as_itself(tmp_path: Path) -> None:
    root = Repository.create(tmp_path / "root", {"q4": {"loss": 0.005}})
    runs.write(root.folder / "inner", {"q8": runs.Made(loss=0.001)})
    Repository(root.folder / "inner").run("dvc", "init", "-q", "--subdir")
    root.run("git", "add", "-f", "inner/selection.json")
    root.commit("a project within")
    text = overview(root.folder, "inner", "inner@HEAD", ".@HEAD")
    assert [row(text, name)["winner"] for name in ("inner", "inner@HEAD", ".@HEAD")] == ["q8", "q8", "q4"]
    told = Repository(root.folder / "inner").run("assay", "compare").stdout
    assert "The winner is still q8." in told


def test_a_release_that_cannot_be_read_is_told(projects: Path, tmp_path: Path) -> None:
    shutil.copytree(projects / "first", tmp_path / "first", symlinks=True)
    project = Repository(tmp_path / "first")
    project.run("git", "tag", "-d", "v1.2.3")
    text = overview(tmp_path, "first")
    assert row(text, "first")["since the release"] == "another image"
    assert "**first**: cannot be compared with its release: Git has neither a tag v1.2.3 nor 1.2.3" in text
    (project.folder / "selection.json").write_text("{}")
    project.commit("another version's")
    project.run("git", "tag", "v1.2.3")
    (project.folder / "selection.json").write_bytes((projects / "first/selection.json").read_bytes())
    text = overview(tmp_path, "first")
    assert "**first**: cannot be compared with its release: selection.json of" in text
    assert "was written by another version of Assay" in text


def test_names_are_no_markup_and_damage_is_called_so(projects: Path, tmp_path: Path) -> None:
    shutil.copytree(projects / "second", tmp_path / "a <b>bold one", symlinks=True)
    shutil.copytree(projects / "second", tmp_path / "torn", symlinks=True)
    torn = tmp_path / "torn/selection.json"
    text = torn.read_text()
    torn.unlink()
    torn.write_text(text[: len(text) // 2])
    told = overview(tmp_path, "a <b>bold one", "torn")
    assert row(told, "a &lt;b>bold one")["winner"] == "tiny"
    assert "**torn**: selection.json of torn is damaged" in told


def test_the_page_can_be_sorted(projects: Path, tmp_path: Path) -> None:
    overview(projects, "first", "second", "--html", str(tmp_path / "overview.html"))
    if executable() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with browser(tmp_path) as tab:
        tab.open((tmp_path / "overview.html").as_uri())
        tab.until("document.querySelector('thead button') !== null")
        names = "[...document.querySelectorAll('tbody tr')].map((row) => row.cells[0].textContent)"
        button = "[...document.querySelectorAll('thead button')].find((one) => one.textContent.startsWith('winner'))"
        tab.run(f"{button}.click()")
        assert tab.run(names) == ["first", "second"]
        tab.run(f"{button}.click()")
        assert tab.run(names) == ["second", "first"]
        assert tab.errors == []


def test_a_project_may_be_elsewhere_and_moved(projects: Path, tmp_path: Path) -> None:
    shutil.copytree(projects / "second", tmp_path / "moved", symlinks=True)
    assert row(overview(tmp_path, f"{tmp_path}/moved/"), f"{tmp_path}/moved")["winner"] == "tiny"
