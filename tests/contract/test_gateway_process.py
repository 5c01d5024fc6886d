"""The gateway as a process: signals, sockets, TLS, settings. What an orchestrator sees."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from tests.support import gateways
from tests.support.gateways import KEY, ROOT, process

ENDLESS = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}


def command(folder: Path, *flags: str) -> list[str]:
    gateways.artifact(folder)
    return ["-m", "tests.support.gateways", "--artifact", str(folder), "--host", "127.0.0.1", "--port", "0", *flags]


def test_sigterm_lets_an_answer_end_refuses_new_ones_and_exits_0(tmp_path: Path) -> None:
    with process(command(tmp_path)) as (child, served):
        served.wait(served.ready)
        with served.http.stream("POST", "/v1/completions", json={**ENDLESS, "max_tokens": 20}) as response:
            lines = response.iter_lines()
            next(lines)
            child.send_signal(signal.SIGTERM)
            served.wait(lambda: any(event["event"] == "draining" for event in served.events))
            refused = served.http.post("/v1/completions", json={"prompt": "a"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
            assert served.http.get("/health/ready").status_code == 503
            assert served.http.get("/health/live").status_code == 200
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert child.wait(20) == 0
        served.wait(lambda: served.events[-1]["event"] == "stopped")
        assert served.events[-1]["abandoned_requests"] == 0


def test_an_answer_beyond_the_limit_ends_by_an_error(tmp_path: Path) -> None:
    with process(command(tmp_path, "--drain-seconds", "0.3")) as (child, served):
        served.wait(served.ready)
        with served.http.stream("POST", "/v1/completions", json=ENDLESS) as response:
            lines = response.iter_lines()
            next(lines)
            child.send_signal(signal.SIGTERM)
            *_, error, done = [line for line in lines if line]
            assert "engine_unavailable" in error
            assert done == "data: [DONE]"
        assert child.wait(20) == 0


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with process(command(tmp_path)) as (child, served):
        served.wait(served.ready)
        with served.http.stream("POST", "/v1/completions", json=ENDLESS) as response:
            next(response.iter_lines())
            began = time.monotonic()
            child.send_signal(signal.SIGINT)
            served.wait(lambda: any(event["event"] == "draining" for event in served.events))
            child.send_signal(signal.SIGINT)
            assert child.wait(20) == 0
            assert time.monotonic() - began < 8


def test_sigterm_while_it_starts_ends_it(tmp_path: Path) -> None:
    """As a container's first process it would not hear a signal that nobody handles."""
    gateways.artifact(tmp_path)
    start = [sys.executable, "-m", "containers.gateway", "--artifact", str(tmp_path), "--auth", "none"]
    with subprocess.Popen(start, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True) as child:
        while not _handles(child.pid, signal.SIGTERM):
            time.sleep(0.001)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
        assert child.stdout is not None
        assert child.stdout.read() == "", "it did not come to listen"


def _handles(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(caught >> (number - 1) & 1)


def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*make, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    flags = ["--tls-certificate", str(certificate), "--tls-key", str(key)]
    with process(command(tmp_path, *flags), scheme="https") as (_, served):
        served.wait(served.ready)
        assert served.http.post("/v1/completions", json={"prompt": "a"}).status_code == 200
        with pytest.raises(httpx2.HTTPError):
            httpx2.get(served.address.replace("https", "http"))


def test_the_health_check_of_the_image(tmp_path: Path) -> None:
    with process(command(tmp_path)) as (_, served):
        port = served.address.rpartition(":")[2]
        assert _health(port) == 0
    assert _health(port) == 1


def _health(port: str) -> int:
    check = [sys.executable, "-m", "containers.gateway.health"]
    return subprocess.run(check, env={"ASSAY_PORT": port, "PYTHONPATH": str(ROOT)}, check=False).returncode


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        ([], {}, "no API keys"),
        (["--api-keys", KEY], {}, "no place for API keys"),
        (["--keys-file", "/nonexistent"], {}, "/nonexistent"),
        ([], {"ASSAY_API_KEYS": " , "}, "empty"),
        (["--slots", "0"], {"ASSAY_API_KEYS": KEY}, "slots"),
        (["--tls-key", "x"], {"ASSAY_API_KEYS": KEY}, "certificate"),
    ],
)
def test_bad_settings_are_a_line_and_exit_2(
    tmp_path: Path, flags: list[str], environment: dict[str, str], words: str
) -> None:
    run = [sys.executable, *command(tmp_path), *flags]
    done = subprocess.run(
        run, env={"PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert KEY not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = [sys.executable, *command(tmp_path), "--port", str(taken.getsockname()[1])]
        env = {"PYTHONPATH": str(ROOT), "ASSAY_API_KEYS": KEY}
        done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_artifact_that_is_not_as_its_record_says(tmp_path: Path) -> None:
    run = [sys.executable, *command(tmp_path)]
    record = tmp_path / "assay.json"
    file = '"files": [{"path": "model-F16.gguf", "bytes": 10, "sha256": "0"}]'
    record.write_text(record.read_text().replace('"files": []', file))
    (tmp_path / "model-F16.gguf").write_bytes(b"short")
    env = {"PYTHONPATH": str(ROOT), "ASSAY_API_KEYS": KEY}
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "model-F16.gguf: 5 bytes" in done.stderr
