"""Every command of the documentation is run, by this test or by one that is named, or says what it needs."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import params
from tests.support import checkpoints, hub_server, registry_server, runs, s3_server
from tests.support.documents import ALL, PAGES, ROOT, Block
from tests.support.repositories import Repository
from tests.support.shipping import make_image

SHELL = [block for block in ALL if block.language == "sh"]


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_each_command_is_run_somewhere_or_says_why_not(block: Block) -> None:
    assert block.kind in ("run", "edit", "tested", "needs"), (
        f"{block} needs a mark of tests/support/documents.py before it"
    )
    if block.kind == "needs":
        assert block.value
    if block.kind == "tested":
        text = (ROOT / block.value).read_text()
        for noun in re.findall(r"(?:assay|dvc) (\w+)", "\n".join(block.commands)):
            assert re.search(rf"\b{noun}\b", text), f"{block}: {block.value} does not run {noun}"


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "yaml"], ids=str)
def test_each_part_of_params_is_one(block: Block) -> None:
    whole = yaml.safe_load((ROOT / "params.yaml").read_text())
    part: dict[str, Any] = yaml.safe_load(block.text)
    for section, values in part.items():
        whole[section] |= values
    params.check(yaml.safe_dump(whole), str(block))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.fixture(scope="module")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Two runs and an experiment, with this repository's params.yaml."""
    made = Repository.create(
        tmp_path_factory.mktemp("documented") / "repository", {"q4": {"loss": 0.005}, "q8": {"loss": 0.002}}
    )
    made.ask({"q4": {"loss": 0.004}, "q8": {"loss": 0.001}})
    made.run("dvc", "repro", "-q")
    for name in ("params.yaml", ".gitignore"):
        shutil.copy(ROOT / name, made.folder)
    with (made.folder / ".gitignore").open("a") as ignored:
        ignored.write("/.venv\n/comparison/\n/models\n/profiles/\n/hf/\n/release.json\n/verification.json\n/report/\n")
    made.commit("second run")
    made.run("dvc", "exp", "run", "-q", "-n", "trial", "-S", "run.yaml:artifacts.q8.loss=0.003")
    made.run("git", "checkout", "-q", "--", ".")
    made.run("dvc", "checkout", "-q")
    (made.folder / ".venv").symlink_to(sys.prefix)
    (made.folder / "models").symlink_to(ROOT / "models")
    shutil.copytree(ROOT / "profiles", made.folder / "profiles")
    return made


@pytest.fixture
def workspace(_finished: Repository, tmp_path: Path) -> Iterator[Repository]:
    """A copy of it, beside servers for everything that is asked for over the network."""
    shutil.copytree(_finished.folder, tmp_path / "repository", symlinks=True)
    made = Repository(tmp_path / "repository")
    with s3_server.serve() as store, registry_server.serve() as registry, hub_server.serve() as hub:
        made.variables |= store.environment | {
            "BUCKET": store.bucket,
            "ENDPOINT": store.endpoint,
            "REGISTRY": f"127.0.0.1:{registry.port}",
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_secret",
            "HOME": str(tmp_path),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        hub.add("org/name", checkpoints.tree())
        yield made


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "extending.md"], ids=lambda page: page.name)
def test_what_a_page_says_to_type_works_in_its_order(
    page: Path, workspace: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "".join(block.text for block in SHELL if block.page == page and block.kind == "run")
    if not script:
        pytest.skip("other tests run its commands, or it has none")
    if "assay release" in script:
        monkeypatch.chdir(workspace.folder)
        make_image()
    if "assay publish" in script:
        for name in ("q4", "q8"):
            runs.write_artifact(workspace.folder, name, {f"{name}.gguf": os.urandom(5000)})
    done = workspace.type(script)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if page.name == "remotes.md":
        ran = [line for line in done.stdout.splitlines() if line.startswith("Running stage")]
        assert ran == [], "a clone rebuilds nothing"
