"""The whole flow through `dvc repro`, on real tools, with one artifact of every format and short texts."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.workspace import Workspace, made, program
from tests.support import s3_server

ARTIFACTS = ("gguf-f16", "gguf-q8_0", "gguf-q2_k", "gptq-int4", "awq-int4", "onnx-fp32", "onnx-int4")
GATED = "trtllm-fp8"
"""An artifact of the profile for GPUs, which the machine that runs this test need not have."""
MOST_RSS_BYTES = 300 * 10**6
"""What llama-server and the gateway need for a model of this size, and no runtime that loads torch does."""
IMAGE = {"engine", "image", "verification", "outcome"}
"""Stages whose outputs are too large to be kept twice: a clone makes them again, to the same digest.
And what looks at the last of them."""


pytestmark = pytest.mark.timeout(3600)
"""The first test makes everything, image included: minutes, and many of them on a machine with other work."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("flow")
    workspace = made(folder, (*ARTIFACTS, GATED), profile="nvidia")
    workspace.environment["ASSAY_GPUS"] = "none"
    limits = {"perplexity_ratio": {"at_most": 1.005}, "served_peak_rss_bytes": {"at_most": MOST_RSS_BYTES}}
    objective = {"metric": "bytes", "direction": "minimize"}
    workspace.params(selection={"objective": objective, "constraints": limits, "concurrency": 2})
    workspace.commit("what the winner must be")
    yield workspace
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def finished(workspace: Workspace) -> Workspace:
    """The workspace after a run that was killed in the middle and resumed."""
    log = (workspace.folder / "killed.log").open("w")
    killed = subprocess.Popen(
        [program("dvc"), "repro"], cwd=workspace.folder, env=workspace.env, stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip
    building = workspace.folder / ".assay/partial/artifacts-awq-int4"
    deadline = time.monotonic() + 900
    while not building.exists():
        assert killed.poll() is None, (workspace.folder / "killed.log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (workspace.folder / "artifacts/awq-int4").exists(), "nothing half-written"
    done = {stage for stage in yaml.safe_load((workspace.folder / "dvc.lock").read_text())["stages"] if "@" in stage}
    assert {"artifact@gguf-f16", "artifact@gptq-int4"} <= done
    ran = workspace.repro()
    assert not done & set(ran), "what was finished before the kill is not built again"
    assert "artifact@awq-int4" in ran
    assert "selection" in ran
    workspace.commit("first run")
    return workspace


def measured(finished: Workspace) -> dict[str, object]:
    """Return metrics.json of the artifacts that there are."""
    return {name: found for name, found in finished.read("metrics.json").items() if name != GATED}


def test_every_artifact_is_built_measured_and_ranked(finished: Workspace) -> None:
    selection, metrics = finished.read("selection.json"), measured(finished)
    assert set(metrics) == set(ARTIFACTS)
    ratio = {name: values["perplexity_ratio"] for name, values in metrics.items()}  # type: ignore[index]
    value = {name: found["value"] for name, found in ratio.items()}
    size = {name: values["bytes"] for name, values in metrics.items()}  # type: ignore[index]
    for name in ("gguf-f16", "onnx-fp32"):
        assert value[name] == pytest.approx(1, abs=0.002), "an unquantized artifact costs what its runtime costs"
    assert abs(value["gguf-q8_0"] - 1) < 0.005
    assert value["gguf-q2_k"] > 1.02
    for name in ("gptq-int4", "awq-int4", "onnx-int4"):
        assert 0.99 < value[name] < 1.1
    assert size["gguf-q2_k"] < size["gguf-q8_0"] < size["gguf-f16"] < size["onnx-fp32"]
    for found in metrics.values():
        assert found["decode_tokens_per_second"] > 1  # type: ignore[index]
        assert found["served_ttft_seconds_p50"]["value"] > 0  # type: ignore[index]
        assert found["served_peak_rss_bytes"] > found["bytes"] / 2  # type: ignore[index]
        assert found["peak_rss_bytes"] > found["bytes"] / 2  # type: ignore[index]
    small = [name for name in ARTIFACTS if metrics[name]["served_peak_rss_bytes"] <= MOST_RSS_BYTES]  # type: ignore[index]
    assert not {"gptq-int4", "awq-int4"} & set(small), "torch alone takes more"
    passing = [name for name in small if ratio[name]["high"] <= 1.005]
    assert selection["winner"] == min(passing, key=lambda name: size[name])
    for name in ARTIFACTS:
        (level,) = finished.read(f"measurements/latency/{name}.json")["served"]["levels"]  # type: ignore[index]
        assert level["concurrency"] == 2
        assert [one["completion_tokens"] for one in level["exchanges"]] == [8] * 12
    report = (finished.folder / "report/report.md").read_text()
    assert all(f"| {name}" in report for name in ARTIFACTS)


def test_what_this_machine_lacks_is_a_row_that_says_so(finished: Workspace) -> None:
    reason = "unavailable here: needs an NVIDIA GPU of compute capability 8.9 for fp8"
    lines = finished.read_text("report/report.md").splitlines()
    (row,) = [line for line in lines if line.startswith(f"| - | {GATED} ")]
    assert reason in row
    assert reason in finished.read_text("report/index.html")
    (standing,) = [one for one in finished.read("selection.json")["ranking"] if one["name"] == GATED]  # type: ignore[attr-defined]
    assert (standing["rank"], set(standing["metrics"].values())) == (None, {None})
    assert finished.read(f"artifacts/{GATED}/assay.json")["files"] == []


def test_divergences_order_the_artifacts_as_their_widths_do(finished: Workspace) -> None:
    """Every figure has an interval around it, and the unquantized ones show how little the runtimes differ."""
    metrics = measured(finished)
    kld = {name: found["kld_mean"] for name, found in metrics.items()}  # type: ignore[index]
    order = ("gguf-f16", "gguf-q8_0", "gptq-int4", "gguf-q2_k")
    assert sorted(order, key=lambda name: kld[name]["value"]) == list(order)
    for name in ("gguf-f16", "onnx-fp32"):
        assert 0 < kld[name]["value"] < 5e-4
        assert metrics[name]["top1_agreement"]["value"] > 0.98  # type: ignore[index]
    for found in metrics.values():
        for metric in ("perplexity", "kld_p99", "top1_agreement", "delta_p_rms", "greedy_length", "accuracy.cloze"):
            assert found[metric]["low"] <= found[metric]["value"] <= found[metric]["high"]  # type: ignore[index]
        assert found["chat_template_agreement"] == 1  # type: ignore[index]


def test_a_second_run_agrees_to_the_bit(finished: Workspace) -> None:
    for name in ("gguf-q8_0", "gptq-int4", "onnx-int4"):
        path = f"measurements/quality/{name}.json"
        first = finished.read(path)
        finished.run("python", "-m", "pipeline", "quality", name)
        assert finished.read(path)["scores"] == first["scores"]
        assert first["repeats_to_the_bit"]
    finished.run("dvc", "checkout", "--force")


def test_artifact_records_hold_identity_only_and_their_files(finished: Workspace) -> None:
    for name in ARTIFACTS:
        folder = finished.folder / "artifacts" / name
        text = (folder / "assay.json").read_text()
        record = json.loads(text)
        assert str(finished.folder) not in text
        listed = {file["path"]: file["bytes"] for file in record["files"]}
        found = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        assert {path: size for path, size in found.items() if path != "assay.json"} == listed
    assert not list((finished.folder / ".assay/partial").glob("*/"))


def test_the_winner_is_in_an_image_that_serves_what_was_measured(finished: Workspace) -> None:
    image, builders = finished.read("image/assay.json"), finished.read("inputs/builders.json")
    if not (builders["builder"] and builders["container"] and builders["debootstrap"]):
        verification = finished.read("verification.json")
        assert "apt-get install" in str(verification["unavailable"]), "what is missing, and how to get it"
        pytest.skip(f"no image can be built and started here: {verification['unavailable']}")
    assert finished.green
    assert image["artifact"] == finished.read("selection.json")["winner"]
    assert [layer["kind"] for layer in image["layers"]][-3:] == ["weights", "code", "evidence"]  # type: ignore[attr-defined]
    finished.run("python", "-m", "pipeline", "image")
    assert finished.read("image/assay.json") == image, "two builds have one digest"


def test_serve_answers_for_the_winner_and_ends_on_sigterm(finished: Workspace) -> None:
    """The words of docs/serving.md, on a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = finished.env | {"ASSAY_API_KEYS": "team:secret-of-24-characters", "ASSAY_PORT": str(port)}
    with subprocess.Popen([program("python"), "-m", "pipeline", "serve"], cwd=finished.folder, env=env) as gateway:
        url, deadline = f"http://127.0.0.1:{port}/v1/chat/completions", time.monotonic() + 120
        body = {"model": finished.read("selection.json")["winner"], "max_tokens": 4}
        body["messages"] = [{"role": "user", "content": "Hello"}]
        request = f"-sfH 'Content-Type: application/json' -H 'Authorization: Bearer secret-of-24-characters' {url}"
        while (answer := finished.run("bash", "-c", f"curl {request} -d '{json.dumps(body)}'", check=False)).returncode:
            assert gateway.poll() is None
            assert time.monotonic() < deadline, answer
            time.sleep(0.5)
        gateway.terminate()
    assert json.loads(answer.stdout)["choices"][0]["message"]["role"] == "assistant"
    assert gateway.returncode == 0


def test_nothing_changed_means_nothing_runs(finished: Workspace) -> None:
    assert finished.repro() == []


def test_a_stage_runs_again_for_its_own_code_and_why_says_so(finished: Workspace) -> None:
    module = finished.folder / "pipeline/backends/gguf/run.py"
    text = module.read_text()
    module.write_text(f"{text}\nCHANGED = 1\n")
    try:
        told = finished.run("python", "-m", "pipeline", "why").stdout
        finished.run("dvc", "repro", "inputs")
        status = json.loads(finished.run("dvc", "status", "--json").stdout)
    finally:
        module.write_text(text)
    opened = {f"{stage}@{name}" for stage in ("quality", "tasks", "latency") for name in ARTIFACTS if "gguf" in name}
    assert set(status) - {"inputs"} == opened | {"image"}, "an image holds all the code"
    assert {line[:-1] for line in told.splitlines() if not line.startswith(" ")} == opened | {"image"}
    assert told.count("  module pipeline.backends.gguf.run changed") == len(opened)
    assert "nothing will run" in finished.run("python", "-m", "pipeline", "why", "selection").stdout
    assert finished.repro() == []


def test_one_recipe_changed_reruns_its_four_stages_and_the_selection(finished: Workspace) -> None:
    before = finished.read("metrics.json")
    done = finished.run("dvc", "exp", "run", "-S", "artifacts.gguf-q2_k.quantization=Q3_K_M")
    ran = {line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage '")}
    own = {f"{stage}@gguf-q2_k" for stage in ("artifact", "quality", "tasks", "latency")}
    assert ran - {"inputs"} == own | {"selection"} | IMAGE
    after = finished.read("metrics.json")
    assert after["gguf-q2_k"]["bytes"] > before["gguf-q2_k"]["bytes"]  # type: ignore[index]
    table = finished.run("dvc", "metrics", "diff", "--md").stdout
    assert "gguf-q2_k.perplexity_ratio" in table
    compared = finished.run("python", "-m", "pipeline", "compare").stdout
    assert re.search(r"\| gguf-q2_k \| `kld_mean` \| .* \| yes \| better \|", compared), "token by token"
    assert re.search(r"\| gguf-q2_k \| `bytes` \| .* \| worse \|", compared)
    finished.run("git", "checkout", "--", ".")
    finished.run("dvc", "checkout", "--allow-missing")
    assert set(finished.repro()) <= IMAGE
    assert finished.repro() == []


def test_a_clean_clone_with_the_cache_restores_instead_of_building(finished: Workspace, tmp_path: Path) -> None:
    clone = Workspace(tmp_path / "clone")
    subprocess.run(["git", "clone", "-q", finished.folder, clone.folder], check=True)
    clone.run("dvc", "cache", "dir", "--local", str(finished.folder / ".dvc/cache"))
    start = {name: (finished.folder / f"artifacts/{name}/assay.json").read_bytes() for name in ARTIFACTS}
    clone.run("dvc", "checkout", "--allow-missing")
    assert set(clone.repro()) <= IMAGE
    assert clone.read("image/assay.json") == finished.read("image/assay.json")
    assert clone.read("verification.json") == finished.read("verification.json") or clone.green
    for name, record in start.items():
        assert (clone.folder / f"artifacts/{name}/assay.json").read_bytes() == record


def test_a_remote_in_s3_brings_everything_back(finished: Workspace, tmp_path: Path) -> None:
    with s3_server.serve() as store:
        clone = Workspace(tmp_path / "clone", **{**finished.environment, **store.environment})
        subprocess.run(["git", "clone", "-q", finished.folder, clone.folder], check=True)
        pushing = Workspace(finished.folder, **clone.environment)
        for each in (pushing, clone):
            each.run("dvc", "remote", "add", "--local", "store", f"s3://{store.bucket}/dvc")
        pushing.run("dvc", "push", "--remote", "store")
        clone.run("dvc", "remote", "default", "--local", "store")
        clone.run("dvc", "pull", "--allow-missing")
        assert clone.repro("--pull", "--allow-missing", "selection") == []
        same = clone.run("python", "-m", "pipeline", "compare", "--all", "--fail-on", "unclear").stdout
    assert " same." in same
    for name in ARTIFACTS:
        record = f"artifacts/{name}/assay.json"
        assert clone.read_text(record) == finished.read_text(record)
    pushing.run("dvc", "remote", "remove", "--local", "store")


def test_no_artifact_passes_names_the_nearest_miss_and_still_writes_the_selection(finished: Workspace) -> None:
    objective = {"metric": "bytes", "direction": "minimize"}
    limits = {"bytes": {"at_most": 1000}}
    finished.params(selection={"objective": objective, "constraints": limits, "concurrency": 2})
    done = finished.run("python", "-m", "pipeline", "selection", check=False)
    selection = finished.read("selection.json")
    finished.run("git", "checkout", "--", ".")
    assert done.returncode == 9
    assert "The nearest miss is gguf-q2_k: bytes " in done.stderr
    assert "at most 1,000" in done.stderr
    assert selection["winner"] is None
    for standing in selection["ranking"]:  # type: ignore[attr-defined]
        assert [gate["verdict"] for gate in standing["gates"]] == ["fails"] * (standing["name"] != GATED)
