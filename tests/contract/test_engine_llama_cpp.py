"""llama-server as an engine: what it says is what the bindings say, and nothing that is given up goes on."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from containers import engines
from containers.engines.contract import UNTOLD, EngineError, Sampling, Token, UnsupportedError
from containers.engines.llama_cpp.engine import LlamaCppEngine
from evals.scoring import score
from pipeline.backends.gguf.backend import Gguf
from pipeline.compute import Compute
from pipeline.records import FILE, Artifact
from tests.support import demo
from tests.support.fakes import windows

RECIPE = Gguf(backend="gguf", quantization="Q4_K_M", imatrix=False)
GREEDY = Sampling(max_tokens=24, temperature=0, ignore_eos=True)
PROMPTS = ("The function returns a list of", "A class", "If the file does not exist, an exception", "naïve 🙂 日本語")
T = TypeVar("T")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.gguf(tmp_path_factory.mktemp("gguf"), RECIPE)


@asynccontextmanager
async def started(artifact: Path, slots: int = 2) -> AsyncIterator[LlamaCppEngine]:
    engine = engines.engine(artifact, compute=Compute(threads=2), slots=slots, context_tokens=512)
    assert isinstance(engine, LlamaCppEngine)
    facts = await engine.start()
    assert (facts.context_tokens, facts.vocabulary_size, facts.bos_id, facts.eos_id) == (512, 4096, 1, 2)
    try:
        yield engine
    finally:
        await engine.stop()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 120))


async def answer(engine: LlamaCppEngine, prompt: str, sampling: Sampling = GREEDY) -> tuple[list[int], str, int]:
    ids = await engine.tokenize(prompt, add_special=True)
    tokens = [token async for token in engine.generate(ids, sampling)]
    return (
        [token.id for token in tokens],
        "".join(token.text for token in tokens),
        sum(token.tokens for token in tokens),
    )


def test_greedy_answers_are_the_bindings_own(artifact: Path) -> None:
    async def ask() -> list[tuple[list[int], list[int], str]]:
        async with started(artifact) as engine:
            asked = [await engine.tokenize(prompt, add_special=True) for prompt in PROMPTS]
            return [(ids, *(await answer(engine, prompt))[:2]) for ids, prompt in zip(asked, PROMPTS, strict=True)]

    with RECIPE.open(artifact, Compute(threads=2)) as runner:
        for prompt, ids, _ in run(ask()):
            own = list(runner.generate(np.array(prompt, np.int32), GREEDY.max_tokens))
            assert set(ids) <= {*own, UNTOLD}  # a token that leaves a character incomplete is not told
            assert ids == own or len(ids) < len(own)


def test_a_slot_is_no_longer_than_what_the_model_was_made_for(artifact: Path, tmp_path: Path) -> None:
    for path in artifact.iterdir():
        (tmp_path / path.name).symlink_to(path)
    record = Artifact.load(artifact / FILE).model_copy(update={"context_tokens": 512})
    (tmp_path / FILE).unlink()
    record.save(tmp_path / FILE)

    async def length(asked: int | None) -> int:
        engine = engines.engine(tmp_path, compute=Compute(threads=2), slots=2, context_tokens=asked)
        try:
            return (await engine.start()).context_tokens
        finally:
            await engine.stop()

    assert [run(length(asked)) for asked in (None, 4096, 256)] == [512, 512, 256]


def test_requests_side_by_side_do_not_know_of_each_other(artifact: Path) -> None:
    async def ask() -> tuple[list[Any], list[Any]]:
        async with started(artifact, slots=4) as engine:
            alone = [await answer(engine, prompt) for prompt in PROMPTS]
            return alone, await asyncio.gather(*(answer(engine, prompt) for prompt in PROMPTS))

    alone, together = run(ask())
    assert alone == together
    assert all(count == GREEDY.max_tokens for _, _, count in alone)


def test_an_answer_that_ends_within_a_character_counts_all_its_tokens(artifact: Path) -> None:
    """The demo's tokenizer writes these characters as three tokens each."""

    async def ask() -> list[list[Token]]:
        async with started(artifact) as engine:
            ids = await engine.tokenize("日本" * 30, add_special=True)
            return [
                [token async for token in engine.generate(ids[:end], replace(GREEDY, max_tokens=count))]
                for end in range(91, 97)
                for count in (1, 2)
            ]

    answers = run(ask())
    assert [sum(token.tokens for token in tokens) for tokens in answers] == 6 * [1, 2]
    assert any(token.id == UNTOLD for tokens in answers for token in tokens)


def test_scores_are_those_of_evaluation(artifact: Path) -> None:
    ids = list(range(3, 403, 4))

    async def ask() -> Any:
        async with started(artifact) as engine:
            return await engine.score(ids, 2)

    first, *scored = run(ask())
    with RECIPE.open(artifact, Compute(threads=2)) as runner:
        nll = score(runner, windows([ids]))[0]
    assert first.logprob is None
    assert [token.id for token in scored] == ids[1:]
    np.testing.assert_allclose([token.logprob for token in scored], -nll, atol=1e-6)
    assert all(token.candidates[0].logprob >= token.candidates[1].logprob for token in scored)


def test_log_probabilities_are_of_temperature_1(artifact: Path) -> None:
    async def ask() -> tuple[Any, Any]:
        async with started(artifact) as engine:
            ids = await engine.tokenize(PROMPTS[0], add_special=True)
            hot = Sampling(max_tokens=1, temperature=2, seed=1, candidates=3)
            (token,) = [token async for token in engine.generate(ids, hot)]
            return token, (await engine.score([*ids, token.id], 3))[-1]

    token, scored = run(ask())
    assert token.logprob == pytest.approx(scored.logprob, abs=2e-3)
    assert [c.id for c in token.candidates] == [c.id for c in scored.candidates]


def test_a_seed_repeats_and_no_seed_does_not(artifact: Path) -> None:
    async def ask() -> list[str]:
        async with started(artifact) as engine:
            drawn = [Sampling(max_tokens=24, seed=seed, ignore_eos=True) for seed in (5, 5, 6, None, None)]
            return [(await answer(engine, PROMPTS[0], one))[1] for one in drawn]

    five, again, six, *free = run(ask())
    assert five == again
    assert len({five, six, *free}) == 4


def test_text_and_ids_come_back_as_they_went(artifact: Path) -> None:
    async def ask() -> tuple[list[int], str, list[int]]:
        async with started(artifact) as engine:
            ids = await engine.tokenize(PROMPTS[3], add_special=False)
            chat = await engine.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
            return ids, await engine.detokenize(ids), chat

    ids, text, chat = run(ask())
    assert text.strip() == PROMPTS[3]
    assert chat[0] == 1
    assert ids[0] != 1


def test_a_schema_is_followed(artifact: Path) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}

    async def ask() -> str:
        async with started(artifact) as engine:
            held = Sampling(max_tokens=100, temperature=0, schema=schema)
            return (await answer(engine, PROMPTS[0], held))[1]

    assert run(ask()).replace(" ", "").replace("\n", "") in ('{"yes":true}', '{"yes":false}')


def test_a_bad_schema_is_the_requests_fault(artifact: Path) -> None:
    async def ask() -> None:
        async with started(artifact) as engine:
            await answer(engine, PROMPTS[0], Sampling(max_tokens=9, schema={"type": "no such type"}))

    with pytest.raises(UnsupportedError):
        run(ask())


def test_a_whole_context_can_be_filled(artifact: Path) -> None:
    async def ask() -> int:
        async with started(artifact) as engine:
            ids = list(range(3, 303))
            full = Sampling(max_tokens=512 - 300, temperature=0, ignore_eos=True)
            return sum([token.tokens async for token in engine.generate(ids, full)])

    assert run(ask()) == 512 - 300


def test_a_closed_answer_stops_and_frees_its_slot(artifact: Path) -> None:
    async def ask() -> tuple[float, float]:
        async with started(artifact, slots=1) as engine:
            long = Sampling(max_tokens=490, temperature=0, ignore_eos=True)
            ids = await engine.tokenize(PROMPTS[0], add_special=True)
            began = time.perf_counter()
            async with aclosing(engine.generate(ids, long)) as tokens:
                _ = [token async for token in tokens]
            whole = time.perf_counter() - began
            async with aclosing(engine.generate(ids[:3], long)) as tokens:
                async for _ in tokens:
                    break
            began = time.perf_counter()
            await answer(engine, "z", Sampling(max_tokens=1, temperature=0))
            return whole, time.perf_counter() - began

    whole, next_one = run(ask())
    assert next_one < whole / 2


def test_a_killed_server_is_noticed_and_can_be_started_again(artifact: Path) -> None:
    async def ask() -> tuple[str, str]:
        async with started(artifact) as engine:
            pid = engine._server.pid

            async def kill_in_the_middle() -> None:
                async for _ in engine.generate([1, 5, 6], Sampling(max_tokens=400, temperature=0, ignore_eos=True)):
                    os.kill(pid, signal.SIGKILL)

            with pytest.raises(EngineError) as caught:
                await kill_in_the_middle()
            why = await engine.died()
            await engine.stop()
            await engine.start()
            await answer(engine, PROMPTS[1])
            return str(caught.value), why

    error, why = run(ask())
    assert "was killed by SIGKILL" in error
    assert "was killed by SIGKILL" in why


def test_a_scorer_that_dies_costs_one_request(artifact: Path) -> None:
    async def ask() -> None:
        async with started(artifact) as engine:
            await engine.score([1, 5, 6], 0)
            assert engine._scorer._child is not None
            os.kill(engine._scorer._child.pid, signal.SIGKILL)
            with pytest.raises(EngineError):
                await engine.score([1, 5, 6], 0)
            assert len(await engine.score([1, 5, 6], 0)) == 3
            await answer(engine, PROMPTS[1])

    run(ask())


def test_a_file_that_is_damaged_is_an_error_with_the_servers_words(artifact: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "assay.json").write_bytes((artifact / "assay.json").read_bytes())
    (damaged / RECIPE.file_name).write_bytes((artifact / RECIPE.file_name).read_bytes()[:100_000])

    async def start() -> None:
        async with started(damaged):
            pass

    with pytest.raises(EngineError, match="llama-server exited"):
        run(start())
