"""TensorRT-LLM as an engine, with a stand-in for its server behind the real guard."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from containers import engines
from containers.engines.contract import EngineError, Sampling, Token, UnsupportedError
from containers.engines.tensorrt_llm.engine import TensorRtLlmEngine
from pipeline.backends.tensorrt_llm import place
from pipeline.backends.tensorrt_llm.target import FILE as TARGET
from pipeline.backends.tensorrt_llm.target import Target
from pipeline.compute import Compute
from pipeline.records import FILE, Artifact, Gpu
from tests.support import standin_trtllm as standin

ROOT = Path(__file__).parents[2]
HOPPER = Gpu(name="NVIDIA H100 80GB HBM3", compute_capability="9.0", memory_mib=81559, driver="580.65.06")
ADA = Gpu(name="NVIDIA L4", compute_capability="8.9", memory_mib=23034, driver="570.10")
RECIPE: dict[str, Any] = {
    "backend": "tensorrt_llm", "quantization": "fp8", "max_batch_size": 2, "max_input_tokens": 200,
    "max_sequence_tokens": 256,
}  # fmt: skip
GREEDY = Sampling(max_tokens=24, temperature=0, ignore_eos=True)
PACKAGE = {
    "__init__.py": "",
    "serve/__init__.py": "",
    "serve/openai_server.py": "from standin_trtllm import OpenAIServer",
    "commands/__init__.py": "",
    "commands/serve.py": "from standin_trtllm import main",
}
T = TypeVar("T")


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo checkpoint with an artifact's record, and a Python that has the stand-in as its TensorRT-LLM."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    for path in (ROOT / "models/demo").iterdir():
        (folder / path.name).symlink_to(path)
    Artifact(name="it", recipe=RECIPE, checkpoint="", calibration="", digest="d" * 64).save(folder / FILE)
    built = Target(
        mode="engine", gpu=HOPPER.name, compute_capability="9.0", driver=HOPPER.driver, tensor_parallel=1,
        tensorrt_llm=place.version(), tools={},
    )  # fmt: skip
    built.save(folder / TARGET)
    for name, text in PACKAGE.items():
        path = tmp_path / "packages" / "tensorrt_llm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    python = tmp_path / "python"
    paths = f"{tmp_path / 'packages'}:{ROOT / 'tests' / 'support'}"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={paths} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("ASSAY_TENSORRT_LLM", str(python))
    return folder


@asynccontextmanager
async def started(artifact: Path, gpu: Gpu = HOPPER) -> AsyncIterator[TensorRtLlmEngine]:
    engine = engines.engine(artifact, compute=Compute(threads=2, gpus=(gpu,)), slots=4, context_tokens=None)
    assert isinstance(engine, TensorRtLlmEngine)
    facts = await engine.start()
    assert (facts.slots, facts.context_tokens, facts.schemas) == (2, 256, False)
    assert facts.runtime == "TensorRT-LLM 1.2.1, fp8, tensor parallel 1"
    try:
        yield engine
    finally:
        await engine.stop()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 60))


async def answer(engine: TensorRtLlmEngine, prompt: list[int], sampling: Sampling = GREEDY) -> list[Token]:
    return [token async for token in engine.generate(prompt, sampling)]


def test_answers_text_and_refusals(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN", json.dumps({"together": 5}))

    async def ask() -> None:
        async with started(artifact) as engine:
            prompt = await engine.tokenize("A class", add_special=True)
            tokens = await answer(engine, prompt)
            ids = [token.id for token in tokens]
            assert ids == [standin.follower(before) for before in [prompt[-1], *ids[:-1]]]
            whole = await engine.detokenize([*prompt, *ids])
            assert whole.endswith("".join(token.text for token in tokens).rstrip())
            assert await answer(engine, [1, standin.LAST], Sampling(max_tokens=5, temperature=0)) == []
            assert len(await answer(engine, [1, standin.LAST], Sampling(max_tokens=5, ignore_eos=True))) == 5
            for asked, words in (
                (Sampling(max_tokens=255), "exceeds max_seq_len"),
                (Sampling(max_tokens=1, candidates=0), "no log-probabilities"),
                (Sampling(max_tokens=1, schema={}), "JSON schema"),
            ):
                with pytest.raises(UnsupportedError, match=words):
                    await answer(engine, [1, 5], asked)
            with pytest.raises(UnsupportedError, match="no log-probabilities of prompts"):
                await engine.score([1, 5], 0)

    run(ask())


def test_nobody_gets_in_without_the_key_and_no_command_line_shows_it(artifact: Path) -> None:
    async def ask() -> None:
        async with started(artifact) as engine, aiohttp.ClientSession() as stranger:
            url = engine._server._url
            for route in ("/health", "/version", "/v1/completions", "/docs"):
                for headers in ({}, {"Authorization": "Bearer wrong"}):
                    async with stranger.get(url + route, headers=headers) as reply:
                        assert reply.status == 401
            assert engine._server._session is not None
            key = engine._server._session.headers["Authorization"].removeprefix("Bearer ")
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    assert key.encode() not in path.read_bytes()
                except OSError:
                    continue

    run(ask())


def test_a_closed_answer_is_aborted(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN", json.dumps({"token_seconds": 0.05}))

    async def ask() -> None:
        async with started(artifact) as engine:
            async with aclosing(engine.generate([1, 5], Sampling(max_tokens=200, ignore_eos=True))) as tokens:
                async for _ in tokens:
                    break
            began = time.monotonic()
            while await engine._server.get("/running"):
                assert time.monotonic() - began < 5, "it goes on"
                await asyncio.sleep(0.02)

    run(ask())


def test_a_crash_in_an_answer_is_an_error_with_the_servers_words(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", json.dumps({"crash_after": 3}))

    async def ask() -> None:
        async with started(artifact) as engine:
            with pytest.raises(EngineError, match=r"trtllm-serve exited with 1; .*illegal memory access"):
                await answer(engine, [1, 5])

    run(ask())


def test_an_engine_of_another_architecture_is_refused_with_both_names(artifact: Path) -> None:
    async def start() -> None:
        async with started(artifact, ADA):
            pass

    with pytest.raises(EngineError, match=r"built for NVIDIA H100 80GB HBM3 \(.*9\.0\).* has NVIDIA L4 \(8\.9\)"):
        run(start())


def test_its_server_ends_with_us(artifact: Path) -> None:
    async def ask() -> list[int]:
        async with started(artifact) as engine:
            return [
                int(path.parent.name)
                for path in Path("/proc").glob("[0-9]*/stat")
                if path.read_text().rpartition(")")[2].split()[1] == str(engine._server.pid)
            ]

    (server,) = run(ask())
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
