"""The steps that CI takes are scripts; here they run on repositories of their own, against servers on loopback."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from pipeline.records import Release
from tests.support import registry_server, s3_server
from tests.support.repositories import ROOT, Repository
from tests.support.shipping import make_image

ARTIFACTS = {"q4": {"loss": 0.005}, "q8": {"loss": 0.001}}


@pytest.fixture(scope="module")
def store() -> Iterator[s3_server.Store]:
    with s3_server.serve() as running:
        yield running


@pytest.fixture(scope="module")
def _published(store: s3_server.Store, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository whose run was pushed to a remote in S3."""
    made = Repository.create(tmp_path_factory.mktemp("ci") / "origin", ARTIFACTS)
    made.variables |= store.environment
    made.run("ci/remote.sh")
    made.run("dvc", "push")
    return made


@pytest.fixture
def clone(_published: Repository, store: s3_server.Store, tmp_path: Path) -> Repository:
    """What CI checks out, pointed at the remote."""
    made = _published.clone(tmp_path / "clone")
    made.variables |= store.environment
    made.run("ci/remote.sh")
    return made


def test_a_branch_that_changes_nothing_runs_nothing_and_is_the_same(clone: Repository) -> None:
    done = clone.run("ci/compare.sh", "origin/main", "comparison")
    assert "Running stage" not in done.stdout
    assert "8 same" in (clone.folder / "comparison/comparison.md").read_text()
    assert (clone.folder / "comparison/comparison.html").stat().st_size > 1000


def test_a_branch_that_is_worse_fails_and_leaves_the_comparison(clone: Repository) -> None:
    clone.ask({**ARTIFACTS, "q4": {"loss": 0.025}})
    clone.commit("worse")
    done = clone.run("ci/compare.sh", "origin/main", "comparison", check=False)
    assert done.returncode == 13, done.stderr
    text = (clone.folder / "comparison/comparison.md").read_text()
    assert "| q4 | `perplexity_ratio` | +0.51 % | +2.54 % | +2.02 [+2.02, +2.02] % | yes | worse |" in text
    clone.variables["ASSAY_FAIL_ON"] = "never"
    assert clone.run("ci/compare.sh", "origin/main", "comparison").returncode == 0


def test_a_flow_that_breaks_fails_and_says_so_above_the_comparison(clone: Repository) -> None:
    clone.ask({"q4": {"loss": "much"}})
    clone.commit("broken")
    done = clone.run("ci/compare.sh", "origin/main", "comparison", check=False)
    assert done.returncode not in (0, 13)
    text = (clone.folder / "comparison/comparison.md").read_text()
    assert text.startswith("**`dvc repro` failed; what follows is as far as it came.**\n")


class Comments:
    """A host of pull requests: GitHub's and GitLab's comments, 2 a page."""

    def __init__(self) -> None:
        self.url = ""
        self.comments: list[dict[str, Any]] = [{"id": number, "body": f"remark {number}"} for number in range(3)]
        self.tokens: set[str | None] = set()

    def handle(self, request: BaseHTTPRequestHandler) -> Any:
        self.tokens.add(request.headers.get("Authorization") or request.headers.get("PRIVATE-TOKEN"))
        split = urlsplit(request.path)
        if request.command == "GET":
            page = int(parse_qs(split.query)["page"][0])
            return self.comments[2 * (page - 1) : 2 * page]
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        if request.command == "POST":
            assert split.path in ("/repos/org/name/issues/7/comments", "/projects/5/merge_requests/7/notes")
            self.comments.append({"id": len(self.comments), **body})
            return self.comments[-1]
        change = (
            "PATCH /repos/org/name/issues/comments"
            if "/repos/" in split.path
            else "PUT /projects/5/merge_requests/7/notes"
        )
        place, _, number = split.path.rpartition("/")
        assert f"{request.command} {place}" == change
        self.comments[int(number)] |= body
        return body


@contextmanager
def host() -> Iterator[Comments]:
    state = Comments()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = json.dumps(state.handle(self)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_PUT = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["github", "gitlab"])
def test_one_comment_is_written_and_then_replaced(kind: str, tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    script, text = str(ROOT / "ci/comment.py"), tmp_path / "comparison.md"
    with host() as there:
        variables = {
            "github": {
                "GITHUB_API_URL": there.url,
                "GITHUB_REPOSITORY": "org/name",
                "PULL_REQUEST": "7",
                "GITHUB_TOKEN": "s",
            },
            "gitlab": {
                "CI_API_V4_URL": there.url,
                "CI_PROJECT_ID": "5",
                "CI_MERGE_REQUEST_IID": "7",
                "GITLAB_TOKEN": "s",
            },
        }
        repository.variables |= variables[kind]
        text.write_text("first\n")
        repository.run("python", script, str(text))
        text.write_text("| row |\n" * 20_000)
        repository.run("python", script, str(text))
    assert [one["body"] for one in there.comments[:3]] == ["remark 0", "remark 1", "remark 2"]
    (ours,) = there.comments[3:]
    assert ours["body"].startswith("<!-- assay compare -->\n| row |\n")
    assert ours["body"].endswith("(cut here; the whole comparison is among the run's artifacts)\n")
    assert len(ours["body"]) < 65536
    assert there.tokens == {"Bearer s" if kind == "github" else "s"}


def test_a_tag_becomes_a_release_and_a_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository.create(tmp_path / "repository", ARTIFACTS)
    monkeypatch.chdir(repository.folder)
    digest = make_image()
    repository.variables |= {
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "ASSAY_CHANNEL": "stable",
    }
    with registry_server.serve() as registry:
        place = f"127.0.0.1:{registry.port}/team/model"
        without = repository.run("ci/release.sh", "v1.2.3", check=False)
        repository.variables["ASSAY_REGISTRY"] = place
        repository.run("ci/release.sh", "v1.2.3")
        tags = repository.run("assay", "rollback", "--list", "stable", "--registry", place).stdout
    assert without.returncode != 0
    assert "ASSAY_REGISTRY" in without.stderr
    released = Release.load(Path("release.json"))
    assert (released.tag, released.digest) == ("1.2.3", digest)
    assert digest in tags


WORKFLOWS = (*(ROOT / ".github/workflows").glob("*.yml"), ROOT / ".gitlab-ci.yml")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_only_call_scripts_that_are_there(path: Path) -> None:
    """What is tested above is what they do: each script they name exists and may be run."""
    text = path.read_text()
    yaml.safe_load(text)
    scripts = set(re.findall(r"\.?\bci/\w+(?:\.sh|\.py)?", text))
    assert {".ci/run"} == scripts or {"ci/setup.sh", "ci/remote.sh"} <= scripts
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o100 or script.endswith(".py"), script
    assert all(re.search(r"@[0-9a-f]{40} # v\d", line) for line in text.splitlines() if "uses:" in line)


def test_scripts_are_sound_shell(tmp_path: Path) -> None:
    for script in (ROOT / "ci").glob("*.sh"):
        Repository(tmp_path).run("bash", "-n", str(script))
        assert script.read_text().startswith("#!/usr/bin/env bash\n")
        assert "set -euo pipefail" in script.read_text()
    if shutil.which("shellcheck"):
        Repository(tmp_path).run("shellcheck", *map(str, (ROOT / "ci").glob("*.sh")))
