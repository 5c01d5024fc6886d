"""The real Hub client uploads to a Hub on loopback: one commit, a card with what was measured, a token unseen."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.records import Quality
from tests.support import runs
from tests.support.hub_server import Fault, Hub, Repository, serve

ROOT = Path(__file__).parents[2]
NAME = "org/demo-q4"
TOKEN = "hf_verysecret"
FILES = {"model-Q4_K_M.gguf": bytes(range(256)) * 64, "config.json": b"{}\n"}


@pytest.fixture
def server() -> Iterator[Hub]:
    with serve() as running:
        running.token = TOKEN
        yield running


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    runs.write(tmp_path, {"gguf-q4_k_m": runs.Made(loss=0.01), "onnx-int8": runs.Made(loss=0.02)})
    runs.write_artifact(tmp_path, "gguf-q4_k_m", FILES, source="hf://org/base")
    return tmp_path


def publish(server: Hub, workspace: Path, *flags: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does. Xet is another protocol, which the stand-in does not speak."""
    own = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(workspace / "hf"), "HF_HUB_DISABLE_XET": "1"}
    env = {**os.environ, **own, "NO_PROXY": "*", "PYTHONPATH": str(ROOT), "HF_DEBUG": "1"}
    env.pop("HF_TOKEN", None)
    if token is not None:
        env["HF_TOKEN"] = token
    command = [sys.executable, "-m", "pipeline", "publish", NAME, *flags]
    done = subprocess.run(command, cwd=workspace, env=env, capture_output=True, text=True, check=False)
    assert TOKEN not in done.stdout + done.stderr
    assert "signature=secret" not in done.stdout
    return done


def published(server: Hub) -> Repository:
    return server.repositories["model", NAME]


def tree(server: Hub) -> dict[str, bytes]:
    repository = published(server)
    return repository.commits[repository.branches["main"]]


def test_an_artifact_arrives_in_one_commit_with_its_card(server: Hub, workspace: Path) -> None:
    done = publish(server, workspace, "--license", "apache-2.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{server.endpoint}/{NAME}/commit/{published(server).branches['main']}"
    assert len(published(server).commits) == 2, "that of the new repository, and ours"
    found = tree(server)
    assert set(found) == {".gitattributes", "README.md", "assay.json", *FILES}
    assert {name: found[name] for name in FILES} == FILES
    card = found["README.md"].decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("org/base", "quantized")
    assert metadata["license"] == "apache-2.0"
    assert re.search(r"\| perplexity vs reference, % \| \+\d\.\d\d \[\+\d\.\d\d, \+\d\.\d\d\] \|", card)
    assert "| 2 | onnx-int8" in card, "beside the others"
    assert "book.txt" in card


def test_the_token_goes_to_the_hub_and_nowhere_else(server: Hub, workspace: Path) -> None:
    publish(server, workspace)
    uploads = [seen for seen in server.seen if seen.path.startswith("/upload/")]
    assert [seen.host for seen in uploads] == ["localhost"]
    assert all("authorization" not in seen.headers for seen in uploads)


def test_an_upload_that_breaks_off_publishes_nothing_and_goes_on_later(server: Hub, workspace: Path) -> None:
    server.faults.append(Fault("POST /api/models/.*/commit", status=500))
    done = publish(server, workspace)
    assert done.returncode == 4
    assert "nothing was published: the Hub answered 500" in done.stderr
    assert set(tree(server)) == {".gitattributes"}
    assert publish(server, workspace).returncode == 0
    assert set(FILES) <= set(tree(server))
    assert len(server.paths("PUT /upload")) == 1, "blobs that are there are not sent again"


def test_an_earlier_artifact_goes_with_the_same_commit_and_other_files_stay(server: Hub, workspace: Path) -> None:
    publish(server, workspace)
    published(server).push({**tree(server), "figure.png": b"theirs"})
    (workspace / "artifacts/gguf-q4_k_m/model-Q4_K_M.gguf").unlink()
    runs.write_artifact(workspace, "gguf-q4_k_m", {"model-Q5_K_M.gguf": bytes(5000)})
    before = len(published(server).commits)
    assert publish(server, workspace).returncode == 0
    assert len(published(server).commits) == before + 1
    assert set(tree(server)) == {".gitattributes", "README.md", "assay.json", "figure.png", "model-Q5_K_M.gguf"}


def test_a_change_in_between_is_not_overwritten(server: Hub, workspace: Path) -> None:
    publish(server, workspace)
    runs.write_artifact(workspace, "gguf-q4_k_m", {**FILES, "config.json": b'{"a": 1}\n'})

    def meddle(line: str) -> None:
        if re.search("POST .*/preupload", line):
            published(server).push({**tree(server), "other": b"theirs"})

    server.before = meddle
    done = publish(server, workspace)
    assert done.returncode == 4
    assert "somebody else changed it meanwhile (412)" in done.stderr
    assert tree(server)["config.json"] == FILES["config.json"]


def test_who_may_not_write_is_told_so(server: Hub, workspace: Path) -> None:
    without, wrong = publish(server, workspace, token=None), publish(server, workspace, token="hf_wrong")
    assert (without.returncode, wrong.returncode) == (4, 4)
    assert "set HF_TOKEN" in without.stderr
    assert "the token may not write there (401)" in wrong.stderr
    assert server.repositories == {}


def test_what_was_not_measured_or_changed_since_is_not_published(server: Hub, workspace: Path) -> None:
    unknown = publish(server, workspace, "--artifact", "none")
    assert "none of the artifacts that were measured: gguf-q4_k_m, onnx-int8" in unknown.stderr
    (workspace / "artifacts/gguf-q4_k_m/config.json").write_bytes(b"[]\n")
    damaged = publish(server, workspace)
    assert "config.json" in damaged.stderr
    runs.write_artifact(workspace, "gguf-q4_k_m", FILES)
    Quality(name="gguf-q4_k_m", artifact="another").save(workspace / "measurements/quality/gguf-q4_k_m.json")
    another = publish(server, workspace)
    assert "is about another build of gguf-q4_k_m" in another.stderr
    assert server.seen == []
