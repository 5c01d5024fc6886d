"""The real Hub client against a Hub on loopback: what a user gets when the way to the Hub is not smooth."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import close_session

from pipeline import hub, hub_errors
from pipeline.checkpoints.check import check
from pipeline.checkpoints.link import ensure, link
from pipeline.checkpoints.obtain import Obtained, obtain
from pipeline.errors import CheckpointError, CorpusError, HubError, StorageError
from pipeline.hub_errors import Repository
from pipeline.texts.read import read
from tests.support import checkpoints
from tests.support.hub_server import Fault, Hub, serve

NAME = "org/small"
SOURCE = f"hf://{NAME}"
FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
TAKEN = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json", FIRST, SECOND}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "hf"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were asked for; none is really made."""
    made: list[float] = []
    clock = SimpleNamespace(sleep=made.append)
    monkeypatch.setattr(hub_errors, "time", clock)
    return made


@pytest.fixture
def server(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[Hub]:
    """A Hub, and the client in this process pointed at it. The client reads its variables once, when imported."""
    with serve() as running:
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        close_session()
        yield running
        close_session()


def anything(_: Mapping[str, Any]) -> dict[str, str | None]:
    return {"gguf-q8_0": None}


def contents(obtained: Obtained) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in obtained.folder.iterdir()}


def expected(tree: dict[str, bytes]) -> dict[str, bytes]:
    return {name: tree[name] for name in TAKEN}


def test_takes_the_checkpoint_and_nothing_else(server: Hub, home: Path, tmp_path: Path) -> None:
    tree = checkpoints.tree()
    commit = server.add(NAME, tree).branches["main"]
    before = set(tmp_path.iterdir())
    obtained = obtain(SOURCE, None)
    assert contents(obtained) == expected(tree)
    assert obtained.revision == commit
    assert obtained.hub_sha256 == {name: hashlib.sha256(tree[name]).hexdigest() for name in (FIRST, SECOND)}
    assert set(tmp_path.iterdir()) - before == {home}
    assert home in obtained.folder.parents
    assert not list(home.rglob("*.incomplete"))
    assert server.most_open_bodies == 1, "one file at a time"


def test_small_files_come_before_weights(server: Hub) -> None:
    server.add(NAME, checkpoints.tree())
    obtain(SOURCE, None)
    lines = server.paths("GET .*(resolve|cdn)")
    first_weight = next(i for i, line in enumerate(lines) if "safetensors" in line and "index" not in line)
    assert [line for line in lines[first_weight:] if "json" in line] == []
    assert lines[0].endswith("config.json")


def test_a_second_time_reads_no_file_from_the_hub(server: Hub) -> None:
    server.add(NAME, checkpoints.tree())
    first = obtain(SOURCE, None)
    server.seen.clear()
    assert obtain(SOURCE, first.revision) == first
    assert server.paths("resolve|cdn") == []


def test_a_branch_that_moves_mixes_nothing(server: Hub) -> None:
    old = checkpoints.tree()
    new = checkpoints.tree(
        **{SECOND: old[SECOND][:-2] + b"\x01\x3f", "config.json": checkpoints.config(rope_theta=7.0)}
    )
    repository = server.add(NAME, old)
    commit = repository.branches["main"]

    def move(line: str) -> None:
        if FIRST in line:
            repository.push(new)

    server.before = move
    obtained = obtain(SOURCE, "main")
    assert repository.branches["main"] != commit
    assert obtained.revision == commit
    assert contents(obtained) == expected(old)
    server.before = lambda _: None
    assert contents(obtain(SOURCE, "main")) == expected(new)
    assert contents(obtain(SOURCE, commit)) == expected(old)


def test_private_with_the_right_token(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = checkpoints.tree()
    server.add(NAME, tree).token = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert contents(obtain(SOURCE, None)) == expected(tree)
    assert [s for s in server.seen if s.host == "localhost"], "large files come from the other host"
    assert [s for s in server.seen if s.host == "localhost" and "authorization" in s.headers] == []


@pytest.mark.parametrize(("token", "remedy"), [(None, "set HF_TOKEN"), ("hf_wrong", "was not accepted")])
def test_401(server: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None, remedy: str) -> None:
    server.add(NAME, checkpoints.tree()).token = "hf_right"
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=remedy) as caught:
        obtain(SOURCE, None)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "hf_wrong" not in f"{chain!r} {chain}"
        chain = chain.__cause__ or chain.__context__


def test_403_gated_names_the_page(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(NAME, checkpoints.tree()).gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with pytest.raises(HubError, match=rf"gated .*accept the terms at {server.endpoint}/{NAME}"):
        obtain(SOURCE, None)


def test_404(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with pytest.raises(HubError, match="there is no such model at"):
        obtain("hf://org/absent", None)
    server.add(NAME, checkpoints.tree())
    with pytest.raises(HubError, match="no branch, tag or commit 'v9'"):
        obtain(SOURCE, "v9")
    found = hub.snapshot(Repository("model", NAME), None)
    with pytest.raises(HubError, match=rf"absent\.json of model {NAME}: there is no such file at {found.commit}"):
        hub.download(found, hub.RemoteFile("absent.json", 2, "0" * 40))


@pytest.mark.parametrize("pattern", ["GET /api/", f"HEAD .*{FIRST}", "GET /cdn/"])
@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (429, {"Retry-After": "37"}, 37.0),
        (429, {"RateLimit": '"api";r=0;t=55'}, 55.0),
        (503, {"Retry-After": "12"}, 12.0),
        (500, {}, 1.0),
    ],
)
def test_waits_as_long_as_the_hub_asks(
    server: Hub, waits: list[float], pattern: str, status: int, headers: dict[str, str], wait: float
) -> None:
    tree = checkpoints.tree()
    server.add(NAME, tree)
    server.faults.append(Fault(pattern, status=status, headers=headers))
    assert contents(obtain(SOURCE, None)) == expected(tree)
    assert waits == [wait]


@pytest.mark.parametrize(
    ("status", "message"), [(429, r"too many requests \(429, 5 times\); wait"), (502, "the Hub answered 502")]
)
def test_gives_up_in_the_end(server: Hub, waits: list[float], status: int, message: str) -> None:
    server.add(NAME, checkpoints.tree())
    server.faults.append(Fault("GET /cdn/", times=99, status=status))
    with pytest.raises(HubError, match=message):
        obtain(SOURCE, None)
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_does_not_wait_an_hour(server: Hub, waits: list[float]) -> None:
    server.add(NAME, checkpoints.tree())
    server.faults.append(Fault("GET /api/", times=99, status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(HubError, match="asking to wait 3600 s"):
        obtain(SOURCE, None)
    assert waits == []


def test_a_dropped_connection_goes_on_from_the_last_byte(server: Hub) -> None:
    tree = checkpoints.tree()
    server.add(NAME, tree)
    server.faults.append(Fault("GET /cdn/", times=7, drop_after=1000))
    assert contents(obtain(SOURCE, None)) == expected(tree)
    ranges = [s.headers.get("range") for s in server.seen if s.method == "GET" and "/cdn/" in s.path]
    assert ranges[:8] == [None, *(f"bytes={1000 * n}-" for n in range(1, 8))]


def test_a_server_without_ranges_starts_again(server: Hub) -> None:
    tree = checkpoints.tree()
    server.add(NAME, tree)
    server.ranges = False
    server.faults.append(Fault("GET /cdn/", drop_after=1000))
    counted: list[int] = []
    found = hub.snapshot(Repository("model", NAME), None)
    file = next(file for file in found.files if file.path == FIRST)
    assert hub.download(found, file, counted.append).read_bytes() == tree[FIRST]
    assert sum(counted) == len(tree[FIRST]), "progress counts no byte twice"


def test_a_killed_process_resumes(server: Hub, home: Path, tmp_path: Path) -> None:
    """With the variables a user sets, in processes of their own; the first one dies in the middle of a shard."""
    tree = checkpoints.tree()
    server.add(NAME, tree).token = "hf_right"
    stall = Fault("GET /cdn/", stall_after=3000)
    server.faults.append(stall)
    code = f"from pipeline.checkpoints.obtain import obtain; print(obtain({SOURCE!r}, None).folder)"
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_right",
        "NO_PROXY": "*",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-c", code]
    first = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size == 3000 for p in home.rglob("*.incomplete")) and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert [p.stat().st_size for p in home.rglob("*.incomplete")] == [3000]
    second = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    folder = Path(second.stdout.strip())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected(tree)
    ranges = [s.headers.get("range") for s in server.seen if s.method == "GET" and "/cdn/" in s.path]
    assert ranges == [None, "bytes=3000-", None]
    assert "hf_right" not in second.stdout + second.stderr


@pytest.mark.parametrize(("pattern", "name"), [("GET /cdn/", FIRST), ("GET .*/config.json", "config.json")])
def test_a_wrong_digest_is_dropped_and_fetched_anew(server: Hub, home: Path, pattern: str, name: str) -> None:
    tree = checkpoints.tree()
    server.add(NAME, tree)
    server.faults.append(Fault(pattern, flip=True))
    with pytest.raises(HubError, match=rf"{name} of model {NAME}: .* came in, the Hub lists .* they were dropped"):
        obtain(SOURCE, None)
    assert not list(home.rglob("*.incomplete"))
    assert not list(home.rglob(name))
    assert contents(obtain(SOURCE, None)) == expected(tree)


def test_a_file_damaged_in_the_cache_is_found_dropped_and_fetched_anew(server: Hub) -> None:
    tree = checkpoints.tree()
    server.add(NAME, tree)
    obtained = obtain(SOURCE, None)
    blob = (obtained.folder / FIRST).resolve()
    blob.write_bytes(tree[FIRST][:-1] + b"\x00")
    with pytest.raises(CheckpointError, match=rf"{FIRST} has sha256 .*, the Hub lists"):
        check(obtained, SOURCE, anything)
    again = obtain(SOURCE, None)
    assert contents(again) == expected(tree)
    record = check(again, SOURCE, anything)
    assert record.revision == again.revision
    assert {file.path for file in record.files} == TAKEN


def test_a_file_cut_short_in_the_cache_is_fetched_anew(server: Hub) -> None:
    tree = checkpoints.tree()
    server.add(NAME, tree)
    blob = (obtain(SOURCE, None).folder / SECOND).resolve()
    blob.write_bytes(tree[SECOND][:100])
    assert contents(obtain(SOURCE, None)) == expected(tree)


def test_nobody_there(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as other:
        free = other.endpoint
    monkeypatch.setattr(constants, "ENDPOINT", free.replace("http://", "http://user:secret@"))
    with pytest.raises(HubError, match=f"{free} cannot be reached .*HF_HUB_OFFLINE=1") as caught:
        obtain(SOURCE, None)
    assert "secret" not in str(caught.value)


def test_something_else_answers(server: Hub) -> None:
    server.faults.append(Fault("GET /api/", status=200))
    with pytest.raises(HubError, match="HF_ENDPOINT"):
        obtain(SOURCE, None)


def test_a_listing_cannot_reach_out_of_the_cache(server: Hub, home: Path) -> None:
    victim = home.parent / "victim.txt"
    victim.write_text("keep")
    server.add("org/texts", {"../../../../../victim.txt": b"gone"}, kind="dataset")
    with pytest.raises(HubError, match="outside of itself"):
        read("hf://datasets/org/texts/**")
    assert victim.read_text() == "keep"


def test_offline_with_a_filled_cache(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(NAME, checkpoints.tree())
    online = obtain(SOURCE, None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.seen.clear()
    assert obtain(SOURCE, None) == online
    assert obtain(SOURCE, online.revision) == online
    assert server.seen == []
    with pytest.raises(HubError, match=r"not in the cache .*HF_HUB_OFFLINE"):
        obtain("hf://org/other", None)


def test_a_full_disk_leaves_what_came_in(server: Hub, home: Path) -> None:
    """/dev/full answers every write as a full disk does."""
    tree = checkpoints.tree()
    server.add(NAME, tree)
    sha256 = hashlib.sha256(tree[SECOND]).hexdigest()
    blobs = Repository("model", NAME).cache / "blobs"
    blobs.mkdir(parents=True)
    partial = blobs / f"{sha256}.incomplete"
    partial.symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"the disk is full; what came in so far is kept"):
        obtain(SOURCE, None)
    partial.unlink()
    partial.write_bytes(tree[SECOND][:2000])
    server.seen.clear()
    assert contents(obtain(SOURCE, None)) == expected(tree)
    assert [s.headers.get("range") for s in server.seen if s.method == "GET" and "/cdn/" in s.path] == ["bytes=2000-"]


def test_too_small_a_disk_is_told_before_the_download(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(NAME, checkpoints.tree())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5000))
    with pytest.raises(StorageError, match=r"are still to be downloaded"):
        obtain(SOURCE, None)
    assert server.paths("cdn") == []


def test_xet_is_not_needed(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = checkpoints.tree()
    server.add(NAME, tree)
    server.xet = True
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert contents(obtain(SOURCE, None)) == expected(tree)


def test_xet_where_the_hub_offers_it(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is real but the transfer itself, which cannot be imitated here. Blobs then lie in a store of their own."""
    tree = checkpoints.tree()
    server.add(NAME, tree)
    server.xet = True

    def transfer(*, incomplete_path: Path, xet_file_data: Any, **_: Any) -> None:
        content = server.blob(xet_file_data.file_hash)
        assert content is not None
        incomplete_path.write_bytes(content)

    monkeypatch.setattr(file_download, "xet_get", transfer)
    obtained = obtain(SOURCE, None)
    assert contents(obtained) == expected(tree)
    assert server.paths("cdn") == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert obtain(SOURCE, None) == obtained
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    stored = (obtained.folder / FIRST).resolve()
    stored.chmod(0o644)
    stored.write_bytes(tree[FIRST][:-1] + b"\x00")
    with pytest.raises(CheckpointError, match="the damaged file was dropped"):
        check(obtained, SOURCE, anything)
    assert contents(obtain(SOURCE, None)) == expected(tree)


def test_xet_that_fails_names_the_way_around(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(NAME, checkpoints.tree())
    server.xet = True

    def transfer(**_: Any) -> None:
        raise RuntimeError("Task error: CAS Client Error: https://cas/secret-address")

    monkeypatch.setattr(file_download, "xet_get", transfer)
    with pytest.raises(HubError, match="HF_HUB_DISABLE_XET=1") as caught:
        obtain(SOURCE, None)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config.json": checkpoints.config(auto_map={"AutoModel": "modeling_own.Own"})}, "auto_map"),
        ({"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": "own.Own"}}'}, "auto_map"),
        ({"config.json": checkpoints.config(quantization_config={"bits": 4})}, "already quantized"),
        ({"config.json": checkpoints.config(architectures=["BertModel"])}, "gguf-q8_0: no converter for BertModel"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "model-9.safetensors"}}'}, "shards .* are missing"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../b.safetensors"}}'}, "in the same folder"),
    ],
)
def test_refused_before_any_weight_comes(server: Hub, change: dict[str, bytes], message: str) -> None:
    server.add(NAME, checkpoints.tree(**change))

    def refusals(config: Mapping[str, Any]) -> dict[str, str | None]:
        name = config["architectures"][0]
        return {"gguf-q8_0": None if name == "LlamaForCausalLM" else f"no converter for {name}"}

    with pytest.raises(CheckpointError, match=message):
        obtain(SOURCE, None, refusals)
    assert server.paths(r"cdn|/resolve/.*(\.bin|\.py|\d\.safetensors)") == []


def test_pickle_only_is_refused_on_the_listing_alone(server: Hub) -> None:
    server.add(NAME, {"config.json": checkpoints.config(), "pytorch_model.bin": b"\x80\x04" * 4096})
    with pytest.raises(CheckpointError, match=r"only as pytorch_model\.bin, a pickle"):
        obtain(SOURCE, None)
    assert server.paths("resolve|cdn") == []


def test_links_are_made_again_at_the_recorded_commit(server: Hub, home: Path, tmp_path: Path) -> None:
    """DVC's cache holds the record only: in a fresh clone the links dangle, and the branch may have moved."""
    tree = checkpoints.tree()
    repository = server.add(NAME, tree)
    obtained = obtain(SOURCE, None)
    record = check(obtained, SOURCE, anything)
    out = tmp_path / "checkpoint"
    link(record, obtained.folder, out)
    repository.push(checkpoints.tree(**{"config.json": checkpoints.config(rope_theta=3.0)}))
    home.rename(home.with_name("moved"))
    assert not (out / FIRST).exists()
    assert ensure(record, SOURCE, out) == out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected(tree)


def test_dataset_at_a_commit(server: Hub) -> None:
    lines = [json.dumps({"text": f"text {n}", "label": n}).encode() for n in range(3)]
    files = {
        "data/b.jsonl": b"\n".join(lines),
        "data/a.txt": b"plain",
        "data/deep/c.txt": b"below",
        "own.py": b"raise SystemExit",
        "scans/a.txt": b"%PDF-1.7",
    }
    repository = server.add("org/texts", files, kind="dataset")
    commit = repository.branches["main"]
    repository.push({"data/a.txt": b"newer"})
    found = read(f"hf://datasets/org/texts@{commit}/data")
    assert found.revision == commit
    assert [document.text for document in found.documents] == ["plain", "text 0", "text 1", "text 2", "below"]
    assert [d.text for d in read("hf://datasets/org/texts/data/*.txt", commit).documents] == ["plain"]
    assert [d.text for d in read("hf://datasets/org/texts/data/**/*.txt", commit).documents] == ["plain", "below"]
    assert [d.text for d in read("hf://datasets/org/texts/data/a.txt").documents] == ["newer"]
    with pytest.raises(CorpusError, match=r"hf://datasets/org/texts/scans/a\.txt: is a PDF"):
        read("hf://datasets/org/texts/scans/a.txt", commit)
    with pytest.raises(CorpusError, match=r"no file at .* matches 'absent'; its files of text are data/a\.txt"):
        read("hf://datasets/org/texts/absent")
    with pytest.raises(CorpusError, match="keep one"):
        read(f"hf://datasets/org/texts@{commit}/data", "main")
    assert server.paths(r"own\.py") == [], "no dataset's code comes unasked"
    assert [d.text for d in read("hf://datasets/org/texts/own.py", commit).documents] == ["raise SystemExit"]
