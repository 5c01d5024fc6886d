"""What an image has to prove, asked of a real gateway over a real GGUF: it passes, and fails when it should."""

import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from evals import agreement, interference, perplexity
from evals.perplexity import Perplexity
from evals.scoring import score
from evals.tokens import Tokens
from evals.windows import Windows
from pipeline.backends.common import hf_tokenizer
from pipeline.backends.gguf.backend import Gguf
from pipeline.compute import Compute
from pipeline.errors import VerificationError
from pipeline.images import checks
from pipeline.images.checks import SAME_CODE, Client
from pipeline.records import FILE
from tests.support import demo
from tests.support.disturbed import BUSY, QUIET, watching
from tests.support.gateways import KEY, process

TOKENS = 64
Q4 = Gguf(backend="gguf", quantization="Q4_K_M", imatrix=False)
Q2 = Gguf(backend="gguf", quantization="Q2_K", imatrix=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Two artifacts of the demo, one of which was measured."""

    q4: Path
    q2: Path
    windows: Windows
    perplexity: Perplexity


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    ids = np.array(hf_tokenizer.load(demo.CHECKPOINT).encode(text, add_special_tokens=False), np.int32)
    rows = ids[: 6 * (TOKENS - 1)].reshape(6, TOKENS - 1)
    windows = Windows(
        ids=np.column_stack([np.ones(6, np.int32), rows]),
        document=np.arange(6, dtype=np.int32),
        utf8_bytes=np.full(6, 4 * TOKENS, np.int64),
    )
    q4, q2 = demo.gguf(folder, Q4), demo.gguf(folder, Q2)
    with Q4.open(q4, Compute(threads=2)) as runner:
        measured = perplexity.summarize(score(runner, windows), windows)
    return Built(q4=q4, q2=q2, windows=windows, perplexity=measured)


@pytest.fixture
def served(built: Built) -> Iterator[tuple["subprocess.Popen[str]", Client]]:
    flags = ["--artifact", str(built.q4), "--host", "127.0.0.1", "--port", "0", "--slots", "2"]
    with process(["-m", "containers.gateway", *flags]) as (child, running):
        running.wait(running.ready, 60)
        yield child, Client(running.address, KEY)


def test_perplexity_through_the_server_is_the_measured_one(
    built: Built, served: tuple["subprocess.Popen[str]", Client]
) -> None:
    _, client = served
    found = checks.scores(client, built.windows, built.perplexity, SAME_CODE)
    assert found.passed
    assert float((found.detail or "").split()[0]) == pytest.approx(0, abs=1e-6)
    another = perplexity.summarize(np.full((6, TOKENS - 1), 2.0), built.windows)
    assert not checks.scores(client, built.windows, another, SAME_CODE).passed


def test_what_the_server_refuses_is_told_in_its_words(served: tuple["subprocess.Popen[str]", Client]) -> None:
    _, client = served
    with pytest.raises(VerificationError, match=r"answered /v1/completions with 400: .*this model has 4096"):
        client.complete(np.array([1, 100_000], np.int32), max_tokens=1)


def test_greedy_answers_are_the_artifacts_own_and_no_others(
    built: Built, served: tuple["subprocess.Popen[str]", Client]
) -> None:
    _, client = served
    prompts = Windows(
        ids=built.windows.ids[:, :24], document=built.windows.document, utf8_bytes=built.windows.utf8_bytes
    )
    assert checks.greedy(client, prompts, _answers(Q4, built.q4, prompts), SAME_CODE, demo.END_IDS).passed
    others = _answers(Q2, built.q2, prompts)
    found = checks.greedy(client, prompts, others, SAME_CODE, demo.END_IDS)
    assert not found.passed
    assert "differs from token" in found.found
    undecided = replace(others, margins=np.zeros_like(others.margins))
    assert checks.greedy(client, prompts, undecided, SAME_CODE, demo.END_IDS).passed, (
        "any other answer may follow a tie"
    )


def test_nothing_is_compared_after_an_answers_end(built: Built) -> None:
    """Told to go on, llama-server never gives the token that ends an answer; in process it is a token like others."""
    client = cast(Client, SimpleNamespace(complete=lambda *_, **__: {"token_ids": [5, 9, 8]}))
    prompt = built.windows.first(1)
    measured = replace(
        Tokens.none(), greedy=np.array([[5, 2, 7]], np.int32), margins=np.array([[9.0, 9.0, 9.0]], np.float32)
    )
    assert checks.greedy(client, prompt, measured, SAME_CODE, (2,)).passed
    assert not checks.greedy(client, prompt, measured, SAME_CODE, (7,)).passed
    assert not checks.greedy(client, prompt, replace(measured, greedy=measured.greedy[:, ::-1]), SAME_CODE, (2,)).passed


def _answers(recipe: Gguf, artifact: Path, prompts: Windows) -> Tokens:
    with recipe.open(artifact, Compute(threads=2)) as runner:
        greedy = agreement.continuations(runner, prompts, 24)
        return replace(Tokens.none(), greedy=greedy, margins=agreement.margins(runner, prompts, greedy))


def test_evidence_must_be_the_records(
    built: Built, served: tuple["subprocess.Popen[str]", Client], tmp_path: Path
) -> None:
    _, client = served
    assert checks.evidence(client, {"artifact": built.q4 / FILE}).passed
    (tmp_path / "quality.json").write_text(json.dumps({"perplexity": 1}))
    found = checks.evidence(client, {"artifact": built.q2 / FILE, "quality": tmp_path / "quality.json"})
    assert not found.passed
    assert found.found == "others for artifact, quality"


def test_nobody_is_let_in_without_a_key(served: tuple["subprocess.Popen[str]", Client]) -> None:
    assert checks.authentication(served[1].url).passed


def test_a_server_that_lets_everybody_in_is_found_out(built: Built) -> None:
    flags = ["--artifact", str(built.q4), "--host", "127.0.0.1", "--port", "0", "--auth", "none"]
    with process(["-m", "containers.gateway", *flags]) as (_, running):
        running.wait(running.ready, 60)
        found = checks.authentication(running.address)
    assert not found.passed
    assert "/v1/completions" in found.found


def test_throughput_is_held_against_the_measured_one_and_a_busy_machine_is_named(
    built: Built, served: tuple["subprocess.Popen[str]", Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = served
    load: dict[str, Any] = {"prompts": list(built.windows.ids[:, :16]), "output_tokens": 8, "concurrency": 2}
    quiet, busy = (watching(*[one] * 9) for one in (QUIET, BUSY))
    monkeypatch.setattr(interference, "PAUSES", (0.0, 0.0, 0.0))
    assert checks.throughput(client, **load, measured=1.0, watching=busy).passed
    missed = checks.throughput(client, **load, measured=1e9, watching=quiet)
    assert not missed.passed
    assert "busy" not in missed.found
    missed = checks.throughput(client, **load, measured=1e9, watching=busy)
    assert not missed.passed
    assert "on a busy machine (other processes ran (cc1plus) 1.00 of 2 processors); let it" in missed.found


def test_an_answer_survives_sigterm(built: Built, served: tuple["subprocess.Popen[str]", Client]) -> None:
    child, client = served
    found = checks.drain(
        client, built.windows.ids[0][:16], 200, lambda: child.send_signal(signal.SIGTERM), lambda: child.wait(60)
    )
    assert found.passed, found.found


def test_a_server_that_dies_of_sigterm_is_found_out(
    built: Built, served: tuple["subprocess.Popen[str]", Client]
) -> None:
    child, client = served
    found = checks.drain(client, built.windows.ids[0][:16], 400, child.kill, lambda: child.wait(60))
    assert not found.passed
    assert "was cut off" in found.found
    assert "the server was killed by SIGKILL" in found.found
