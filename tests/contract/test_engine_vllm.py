"""vLLM as an engine, and behind the gateway, with a stand-in for the program that behaves as its source says."""

import asyncio
import json
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from containers import engines
from containers.engines.contract import EngineError, Sampling, Token, UnsupportedError
from containers.engines.vllm.engine import VllmEngine
from containers.gateway.process import gateway
from pipeline.compute import Compute
from pipeline.errors import NativeCrashError
from pipeline.records import FILE, Artifact, Gpu, Placement
from tests.support import standin_vllm as standin

ROOT = Path(__file__).parents[2]
GPU = Gpu(name="NVIDIA L4", compute_capability="8.9", memory_mib=23034, driver="570.10")
ON_GPU = Compute(threads=2, gpus=(GPU,))
GREEDY = Sampling(max_tokens=24, temperature=0, ignore_eos=True)
T = TypeVar("T")


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo checkpoint with an artifact's record, and the stand-in as the program that serves it."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    for path in (ROOT / "models/demo").iterdir():
        (folder / path.name).symlink_to(path)
    recipe: dict[str, Any] = {"backend": "safetensors", "dtype": "bfloat16"}
    Artifact(name="it", recipe=recipe, checkpoint="", calibration="", digest="d" * 64).save(folder / FILE)
    program = tmp_path / "vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {standin.__file__} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("ASSAY_VLLM", str(program))
    return folder


def wish(monkeypatch: pytest.MonkeyPatch, **wishes: Any) -> None:
    monkeypatch.setenv("STANDIN", json.dumps(wishes))


@asynccontextmanager
async def started(artifact: Path, context_tokens: int = 512, drain_seconds: float = 30) -> AsyncIterator[VllmEngine]:
    engine = engines.engine(
        artifact, compute=ON_GPU, slots=4, context_tokens=context_tokens, drain_seconds=drain_seconds
    )
    assert isinstance(engine, VllmEngine)
    facts = await engine.start()
    assert (facts.context_tokens, facts.vocabulary_size, facts.bos_id, facts.eos_id) == (context_tokens, 4096, 1, 2)
    try:
        yield engine
    finally:
        await engine.stop()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 60))


async def answer(engine: VllmEngine, prompt: list[int], sampling: Sampling = GREEDY) -> list[Token]:
    return [token async for token in engine.generate(prompt, sampling)]


def expected(prompt: list[int], count: int) -> list[int]:
    made: list[int] = []
    for _ in range(count):
        made.append(standin.follower(made[-1] if made else prompt[-1]))
    return made


@pytest.mark.parametrize("together", [1, 5])
def test_tokens_come_as_they_are_made(artifact: Path, monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    wish(monkeypatch, together=together)

    async def ask() -> tuple[list[Token], str]:
        async with started(artifact) as engine:
            prompt = await engine.tokenize("A class", add_special=True)
            tokens = await answer(engine, prompt)
            assert [token.id for token in tokens] == expected(prompt, GREEDY.max_tokens)
            whole = await engine.detokenize([*prompt, *(token.id for token in tokens)])
            return tokens, whole

    tokens, whole = run(ask())
    text = "".join(token.text for token in tokens)
    assert whole.endswith(text.rstrip())
    assert text.strip()


def test_end_of_sequence_ends_an_answer_and_is_no_part_of_it(artifact: Path) -> None:
    async def ask() -> tuple[list[Token], list[Token]]:
        async with started(artifact) as engine:
            ended = await answer(engine, [1, standin.LAST], Sampling(max_tokens=5, temperature=0))
            ignored = await answer(engine, [1, standin.LAST], Sampling(max_tokens=5, temperature=0, ignore_eos=True))
            return ended, ignored

    ended, ignored = run(ask())
    assert ended == []
    assert [token.id for token in ignored] == expected([standin.LAST], 5)


def test_config_names_what_ends_an_answer_where_the_generation_config_does_not(artifact: Path) -> None:
    made = expected([1], 5)
    stated: dict[str, dict[str, Any]] = {
        "config.json": {"eos_token_id": [2, made[3]]},
        "generation_config.json": {"eos_token_id": None},
    }
    for name, change in stated.items():
        text = json.dumps({**json.loads((artifact / name).read_text()), **change})
        (artifact / name).unlink()
        (artifact / name).write_text(text)

    async def ask() -> list[Token]:
        async with started(artifact) as engine:
            return await answer(engine, [1], Sampling(max_tokens=5, temperature=0))

    assert [token.id for token in run(ask())] == made[:3]


def test_log_probabilities_have_ids_and_are_sorted(artifact: Path) -> None:
    async def ask() -> tuple[list[Token], list[Token]]:
        async with started(artifact) as engine:
            made = await answer(engine, [1, 300], Sampling(max_tokens=3, temperature=0, candidates=2))
            bare = await answer(engine, [1, 300], Sampling(max_tokens=3, temperature=0, candidates=0))
            return made, bare

    made, bare = run(ask())
    before = 300
    for token, alone in zip(made, bare, strict=True):
        assert token.logprob == alone.logprob == standin.logprob(before, token.id)
        assert [one.id for one in token.candidates] == standin.likeliest(before, 2)
        assert alone.candidates == ()
        before = token.id


def test_scores_are_vllms_own(artifact: Path) -> None:
    ids = [1, 5, 300, standin.follower(300), 7]

    async def ask() -> tuple[list[Token], list[Token]]:
        async with started(artifact) as engine:
            return await engine.score(ids, 2), await engine.score(ids[:1], 0)

    (first, *scored), alone = run(ask())
    assert first.logprob is None
    assert [token.id for token in scored] == ids[1:]
    for before, token in zip(ids, scored, strict=False):
        assert token.logprob == standin.logprob(before, token.id)
        assert [one.id for one in token.candidates] == standin.likeliest(before, 2)
    assert [token.logprob for token in alone] == [None]


def test_text_is_that_of_the_other_engines(artifact: Path) -> None:
    async def ask() -> tuple[list[int], str, list[int]]:
        async with started(artifact) as engine:
            ids = await engine.tokenize("naïve 🙂 日本語", add_special=False)
            chat = await engine.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
            return ids, await engine.detokenize(ids), chat

    ids, text, chat = run(ask())
    assert text.strip() == "naïve 🙂 日本語"
    assert (ids[0] != 1, chat[0]) == (True, 1)


@pytest.mark.parametrize(
    ("prompt", "sampling", "words"),
    [
        ([1, 2], Sampling(max_tokens=9, schema={"type": "no such type"}), "JSON schema"),
        ([1] * 500, Sampling(max_tokens=13), "maximum context length is 512"),
        ([1, 5000], Sampling(max_tokens=1), "5000 is out of vocabulary"),
        ([], Sampling(max_tokens=1), "no tokens"),
    ],
)
def test_what_vllm_refuses_is_the_requests_fault(
    artifact: Path, prompt: list[int], sampling: Sampling, words: str
) -> None:
    async def ask() -> None:
        async with started(artifact) as engine:
            with pytest.raises(UnsupportedError, match=words):
                await answer(engine, prompt, sampling)
            assert len(await answer(engine, [1, 5])) == GREEDY.max_tokens

    run(ask())


def test_a_closed_answer_is_aborted(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wish(monkeypatch, token_seconds=0.05)

    async def ask() -> None:
        async with started(artifact) as engine:
            long = Sampling(max_tokens=400, temperature=0, ignore_eos=True)
            async with aclosing(engine.generate([1, 5], long)) as tokens:
                async for _ in tokens:
                    break
            began = time.monotonic()
            while await engine._server.get("/running"):
                assert time.monotonic() - began < 5, "it goes on"
                await asyncio.sleep(0.02)

    run(ask())


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"crash_after": 3}, r"vllm exited with 1; .*illegal memory access"),
        ({"dead_after": 3}, "EngineCore encountered an issue"),
    ],
)
def test_a_crash_in_an_answer_is_an_error_and_it_can_be_started_again(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, wishes: dict[str, Any], words: str
) -> None:
    wish(monkeypatch, **wishes)

    async def ask() -> str:
        async with started(artifact) as engine:
            with pytest.raises(EngineError, match=words):
                await answer(engine, [1, 5])
            why = await engine.died()
            await engine.stop()
            await engine.start()
            assert len(await answer(engine, [1, 5], Sampling(max_tokens=2, temperature=0))) == 2
            return why

    assert "vllm exited with 1" in run(ask())


def test_an_abort_on_shutdown_is_an_error(artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever ends all processes of a service at once reaches it, too."""
    wish(monkeypatch, token_seconds=0.05, seen=str(tmp_path / "seen"))

    async def ask(drain_seconds: float, tokens: int) -> list[Token]:
        async with started(artifact, drain_seconds=drain_seconds) as engine:
            made: list[Token] = []
            async for token in engine.generate([1, 5], Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)):
                if not made:
                    os.kill(json.loads((tmp_path / "seen").read_text())["server"], signal.SIGTERM)
                made.append(token)
            return made

    assert len(run(ask(drain_seconds=10, tokens=20))) == 20
    with pytest.raises(EngineError, match="ended an answer: abort"):
        run(ask(drain_seconds=0, tokens=400))


def test_loading_has_no_limit_of_its_own(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wish(monkeypatch, load_seconds=2)

    async def ask() -> int:
        async with started(artifact) as engine:
            return len(await answer(engine, [1, 5]))

    assert run(ask()) == GREEDY.max_tokens


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"load_error": "No available memory for the cache blocks."}, r"exited with 1; .*No available memory"),
        ({"version": "0.9.1"}, r"vLLM 0\.9\.1"),
    ],
)
def test_a_server_that_does_not_come_up_leaves_nothing_and_its_words(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wishes: dict[str, Any], words: str
) -> None:
    wish(monkeypatch, seen=str(tmp_path / "seen"), **wishes)

    async def start() -> None:
        engine = engines.engine(artifact, compute=ON_GPU, slots=1, context_tokens=64)
        try:
            await engine.start()
        finally:
            await engine.stop()

    with pytest.raises(EngineError, match=words):
        run(start())
    _gone(json.loads((tmp_path / "seen").read_text())["engine"])


def test_what_is_missing_is_said(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placement = Placement(tensor_parallel=2)
    wide = engines.engine(artifact, compute=ON_GPU, slots=1, context_tokens=64, placement=placement)
    with pytest.raises(EngineError, match="tensor_parallel is 2, and there are 1 GPUs"):
        run(wide.start())
    monkeypatch.setenv("ASSAY_VLLM", "/no/such/vllm")
    with pytest.raises(EngineError, match="ASSAY_VLLM=/no/such/vllm: there is no such program"):
        run(engines.engine(artifact, compute=ON_GPU, slots=1, context_tokens=64).start())


def test_the_whole_family_ends_with_the_gateway(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The process that holds the GPU's memory is no child of ours, and would outlive a gateway that is killed."""
    seen = tmp_path / "seen"
    wish(monkeypatch, seen=str(seen))
    _with_gpu(tmp_path, monkeypatch)
    with (
        pytest.raises(NativeCrashError, match="was killed by SIGKILL"),
        gateway(artifact, compute=ON_GPU, slots=2) as served,
    ):
        served.kill()
    _gone(json.loads(seen.read_text())["engine"])


def test_served_behind_the_gateway(artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    wish(monkeypatch, seen=str(seen))
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    monkeypatch.setenv("ASSAY_API_KEYS", "team:a-key-of-a-client")
    _with_gpu(tmp_path, monkeypatch)
    flags = ("--engine", "vllm", "--gpu-memory-fraction", "0.5")
    with gateway(artifact, compute=ON_GPU, slots=2, flags=flags) as served:
        body = {"prompt": [1, 5], "max_tokens": 3, "temperature": 0, "echo": True, "logprobs": 1, "ignore_eos": True}
        choice = _post(f"{served.url}/v1/completions", body)["choices"][0]
        (told, runtime) = json.loads(seen.read_text()), served.runtime
    assert choice["logprobs"]["token_logprobs"][1] == pytest.approx(standin.logprob(1, 5))
    assert len(choice["logprobs"]["tokens"]) == 5
    assert runtime == f"vLLM {standin.Wish().version}, bfloat16, tensor parallel 1"
    command = told["command"]
    assert command[command.index("--gpu-memory-utilization") + 1] == "0.5"
    outside = {name for name in told["environment"] if name.startswith("VLLM_")}
    assert outside <= standin.FLAGS["environment"].keys()
    assert not any("a-key-of-a-client" in word for word in [*command, *told["environment"].values()])
    _gone(told["engine"])


def _with_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine look as one with a driver."""
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("ASSAY_GPUS", f"{GPU.name}:{GPU.compute_capability}:{GPU.memory_mib}:{GPU.driver}")


def _post(url: str, body: dict[str, Any]) -> Any:
    import httpx2

    response = httpx2.post(url, json=body, timeout=30, trust_env=False)
    response.raise_for_status()
    return response.json()


def _gone(pid: int) -> None:
    """Wait until a process is no more."""
    until = time.monotonic() + 5
    while (stat_ := Path(f"/proc/{pid}/stat")).exists() and " Z " not in stat_.read_text():
        assert time.monotonic() < until, f"process {pid} is left"
        time.sleep(0.02)
