"""The ONNX engine: a worker process with the demo's float32 build, and its slots on other families."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest

from containers.engines.contract import EngineError, Facts, Sampling, Token, UnsupportedError
from containers.engines.onnxruntime.model import model
from containers.engines.onnxruntime.slots import OnnxSlots
from containers.engines.python import PythonEngine
from containers.engines.text import Text
from evals.runner import Logits
from evals.scoring import score
from evals.windows import Windows
from pipeline.backends.common import hf_tokenizer
from pipeline.backends.onnx.backend import Onnx
from pipeline.backends.onnx.decoder import Decoder
from pipeline.backends.onnx.run import OnnxRunner
from pipeline.compute import Compute
from pipeline.records import FILE, Artifact
from tests.support.families import FAMILIES

DEMO = Path(__file__).parents[2] / "models" / "demo"
RECIPE = Onnx(backend="onnx", precision="fp32")
SLOTS = 3
CONTEXT = 512
PROMPTS = (
    "The statement binds a name.",
    "def f(x):\n    return",
    "日本 naïve",
    "An object is",
    "Modules",
)
T = TypeVar("T")


class Started(NamedTuple):
    """An engine that is up, and the artifact that it serves."""

    loop: asyncio.Runner
    engine: PythonEngine
    facts: Facts
    artifact: Path

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(asyncio.wait_for(work, 120))

    def ids(self, text: str) -> list[int]:
        return self.run(self.engine.tokenize(text, add_special=True))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    if not (DEMO / "config.json").is_file():
        pytest.skip("models/demo holds no checkpoint")
    artifact = built(DEMO, tmp_path_factory.mktemp("demo") / "artifact")
    with asyncio.Runner() as loop:
        engine = PythonEngine(artifact, compute=Compute(threads=2), slots=SLOTS, context_tokens=CONTEXT)
        facts = loop.run(engine.start())
        yield Started(loop, engine, facts, artifact)
        loop.run(engine.stop())


def built(checkpoint: Path, artifact: Path) -> Path:
    if missing := RECIPE.requirements():
        pytest.skip(missing[0].what)
    artifact.mkdir()
    RECIPE.build(checkpoint, artifact, artifact, Compute(threads=2))
    record = Artifact(name="it", recipe=RECIPE.model_dump(), checkpoint="", calibration="", digest="")
    record.save(artifact / FILE)
    return artifact


def greedy(tokens: int, **changes: Any) -> Sampling:
    return Sampling(max_tokens=tokens, temperature=0, ignore_eos=True, **changes)


def expected(artifact: Path, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[list[int]]:
    """What evaluation's runner generates for each prompt alone."""
    with RECIPE.open(artifact, Compute(threads=2)) as runner:
        return [
            list(runner.generate(np.array(prompt, np.int32), count))
            for prompt, count in zip(prompts, tokens, strict=True)
        ]


async def take(stream: AsyncGenerator[Token, None], most: int = 10_000) -> list[Token]:
    """Take tokens to the end, or cancel after some."""
    taken = []
    async with aclosing(stream):
        async for token in stream:
            taken.append(token)
            if len(taken) == most:
                break
    return taken


def of(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def test_facts(started: Started) -> None:
    assert "onnxruntime" in started.facts.runtime
    assert started.facts.context_tokens == CONTEXT
    assert (started.facts.bos_id, started.facts.eos_id, started.facts.slots) == (1, 2, SLOTS)
    assert started.facts.vocabulary_size == len(hf_tokenizer.load(DEMO))


def test_one_stream_gives_what_evaluation_generates(started: Started) -> None:
    prompt = started.ids(PROMPTS[0])
    made = started.run(take(started.engine.generate(prompt, greedy(60))))
    assert [of(made)] == expected(started.artifact, [prompt], [60])


def test_requests_together_give_what_each_gives_alone(started: Started) -> None:
    """More of them than slots, of different lengths: they join and leave while others go on."""
    prompts, lengths = [started.ids(text) for text in PROMPTS], (40, 7, 25, 1, 60)

    async def together() -> list[list[Token]]:
        pairs = zip(prompts, lengths, strict=True)
        streams = [started.engine.generate(prompt, greedy(length)) for prompt, length in pairs]
        return await asyncio.gather(*map(take, streams))

    assert list(map(of, started.run(together()))) == expected(started.artifact, prompts, lengths)


def test_a_late_request_does_not_wait_for_the_others(started: Started) -> None:
    long, short = started.ids(PROMPTS[0]), started.ids(PROMPTS[1])

    async def late() -> tuple[list[Token], list[Token], int]:
        first: list[Token] = []

        async def run() -> None:
            async for token in started.engine.generate(long, greedy(400)):
                first.append(token)

        running = asyncio.create_task(run())
        while not first:
            await asyncio.sleep(0)
        second = await take(started.engine.generate(short, greedy(5)))
        at = len(first)
        await running
        return first, second, at

    first, second, at = started.run(late())
    assert at < 400
    assert [of(first), of(second)] == expected(started.artifact, [long, short], [400, 5])


def test_cancelled_requests_free_their_slots(started: Started) -> None:
    prompts = [started.ids(text) for text in PROMPTS]

    async def cancelled() -> list[list[Token]]:
        for _ in range(3):
            await asyncio.gather(*(take(started.engine.generate(prompt, greedy(400)), most=3) for prompt in prompts))
        return await asyncio.gather(*(take(started.engine.generate(prompt, greedy(10))) for prompt in prompts))

    assert list(map(of, started.run(cancelled()))) == expected(started.artifact, prompts, [10] * len(prompts))


def test_a_seed_repeats_whatever_runs_beside_it(started: Started) -> None:
    prompt, other = started.ids(PROMPTS[0]), started.ids(PROMPTS[1])
    seeded = Sampling(max_tokens=30, temperature=1.2, top_p=0.95, seed=5, ignore_eos=True)

    async def beside() -> list[list[Token]]:
        free = Sampling(max_tokens=50, ignore_eos=True)
        several = (started.engine.generate(prompt, seeded), started.engine.generate(other, free))
        return await asyncio.gather(*map(take, several))

    alone = of(started.run(take(started.engine.generate(prompt, seeded))))
    assert of(started.run(beside())[0]) == alone
    reseeded = Sampling(max_tokens=30, temperature=1.2, top_p=0.95, seed=6, ignore_eos=True)
    assert of(started.run(take(started.engine.generate(prompt, reseeded)))) != alone


def test_scores_are_those_of_evaluation(started: Started) -> None:
    ids = np.array(started.ids("The statement binds a name. " * 12), np.int32)
    tokens = started.run(started.engine.score(ids.tolist(), 2))
    row = np.zeros(1, np.int32)
    with RECIPE.open(started.artifact, Compute(threads=2)) as runner:
        nll = score(runner, Windows(ids=ids[None], document=row, utf8_bytes=row.astype(np.int64))).ravel()
    assert of(tokens) == ids.tolist()
    assert tokens[0].logprob is None
    np.testing.assert_allclose(np.array([token.logprob for token in tokens[1:]], float), -nll, atol=1e-6)
    for token in tokens[1:]:
        best, second = token.candidates
        assert token.logprob is not None
        assert best.logprob >= max(second.logprob, token.logprob)
    # SentencePiece's space before every text is a token's own, but no part of the text.
    whole = started.run(started.engine.detokenize(ids[1:].tolist()))
    assert "".join(token.text for token in tokens[1:]) == " " + whole


def test_scoring_and_generating_go_on_side_by_side(started: Started) -> None:
    prompt = started.ids(PROMPTS[0])
    ids = prompt * 20

    async def both() -> tuple[list[Token], list[Token]]:
        return await asyncio.gather(
            take(started.engine.generate(prompt, greedy(80))), started.engine.score(ids[:CONTEXT], 0)
        )

    made, scored = started.run(both())
    assert [of(made)] == expected(started.artifact, [prompt], [80])
    assert scored == started.run(started.engine.score(ids[:CONTEXT], 0))


def test_log_probabilities_of_an_answer_are_its_scores(started: Started) -> None:
    prompt = started.ids(PROMPTS[0])
    made = started.run(take(started.engine.generate(prompt, greedy(20, candidates=3))))
    scored = started.run(started.engine.score([*prompt, *of(made)], 3))[len(prompt) :]
    for token, again in zip(made, scored, strict=True):
        assert token.logprob == pytest.approx(again.logprob, abs=1e-3)
        assert token.candidates[0].id == token.id
        assert token.candidates[0].logprob == token.logprob
        assert [one.id for one in token.candidates] == [one.id for one in again.candidates]


def test_end_of_sequence_ends(started: Started, tmp_path: Path) -> None:
    """A model may declare several: here two of the tokens that this very answer holds."""
    prompt = started.ids(PROMPTS[0])
    (whole,) = expected(started.artifact, [prompt], [40])
    stop = next(id_ for at, id_ in enumerate(whole) if at > 3 and id_ not in whole[:at])
    stopping = shutil.copytree(started.artifact, tmp_path / "stopping")
    path = stopping / "genai_config.json"
    path.write_text(path.read_text().replace('"eos_token_id": 2', f'"eos_token_id": [2, {stop}]'))

    async def run() -> tuple[Facts, list[Token], list[Token]]:
        engine = PythonEngine(stopping, compute=Compute(threads=1), slots=1, context_tokens=CONTEXT)
        facts = await engine.start()
        try:
            stopped = await take(engine.generate(prompt, Sampling(max_tokens=40, temperature=0)))
            return facts, stopped, await take(engine.generate(prompt, greedy(40)))
        finally:
            await engine.stop()

    facts, stopped, ignored = started.run(run())
    assert facts.eos_id == 2
    assert of(stopped) == whole[: whole.index(stop)]
    assert of(ignored) == whole


def test_texts_assemble(started: Started) -> None:
    """At temperature 1 into the text of the answer; heated, into what can be told of bytes that are no characters."""
    prompt, text = started.ids(PROMPTS[2]), Text(started.artifact)
    for temperature in (1.0, 8.0):
        sampling = Sampling(max_tokens=300, temperature=temperature, seed=11, ignore_eos=True)
        made = started.run(take(started.engine.generate(prompt, sampling)))
        stream = text.stream(prompt)
        assert [token.text for token in made] == [stream.add(id_) for id_ in of(made)]
        streamed = "".join(token.text for token in made)
        assert streamed.isascii() == (temperature == 1)
        if streamed.isascii():
            assert text.decode(prompt) + streamed == text.decode([*prompt, *of(made)])


def test_tokenizer_and_template_are_the_checkpoint_s(started: Started) -> None:
    tokenizer = hf_tokenizer.load(DEMO)
    text = "naïve 日本  words"
    assert started.ids(text) == tokenizer.encode(text)
    plain = started.run(started.engine.tokenize(text, add_special=False))
    assert plain == tokenizer.encode(text, add_special_tokens=False)
    assert started.run(started.engine.detokenize(plain)) == text
    messages = [{"role": "user", "content": "What is 日本?"}]
    rendered = started.run(started.engine.render(messages, add_generation_prompt=True))
    assert rendered == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize(
    ("prompt", "tokens", "words"),
    [
        ([], 1, "no tokens"),
        ([1] * 500, 13, "context is 512"),
        ([1, 10**6], 1, "token ids go"),
        ([1], 0, "at least one"),
    ],
)
def test_what_cannot_be_answered_is_refused_and_harms_nobody(
    started: Started, prompt: list[int], tokens: int, words: str
) -> None:
    with pytest.raises(UnsupportedError, match=words):
        started.run(take(started.engine.generate(prompt, greedy(tokens))))
    assert len(started.run(take(started.engine.generate([1], greedy(2))))) == 2


def test_the_whole_context_can_be_used(started: Started) -> None:
    prompt = [1] * (CONTEXT - 4)
    assert len(started.run(take(started.engine.generate(prompt, greedy(4))))) == 4


def test_a_worker_that_dies_says_so_and_can_be_started_again(started: Started) -> None:
    async def run() -> str:
        engine = PythonEngine(started.artifact, compute=Compute(threads=1), slots=1, context_tokens=64)
        await engine.start()
        assert engine._child is not None
        stream = engine.generate([1], greedy(60))
        await anext(stream)
        os.kill(engine._child.pid, 9)
        with pytest.raises(EngineError, match="was killed by SIGKILL"):
            await take(stream)
        with pytest.raises(EngineError, match="not running"):
            await engine.tokenize("a", add_special=False)
        why = await engine.died()
        await engine.stop()
        await engine.start()
        try:
            assert len(await take(engine.generate([1], greedy(3)))) == 3
        finally:
            await engine.stop()
            await engine.stop()
        return why

    assert "was killed by SIGKILL" in started.run(run())


def test_a_damaged_artifact_does_not_start(started: Started, tmp_path: Path) -> None:
    broken = shutil.copytree(started.artifact, tmp_path / "broken")
    (broken / "model.onnx.data").unlink()
    with pytest.raises(EngineError, match=r"model\.onnx\.data"):
        started.run(PythonEngine(broken, compute=Compute(threads=1), slots=1, context_tokens=64).start())


def test_memory_stays_flat(started: Started) -> None:
    prompt = started.ids("The statement binds a name. " * 20)

    async def burst() -> int:
        await asyncio.gather(*(take(started.engine.generate(prompt, greedy(100))) for _ in range(2 * SLOTS)))
        await started.engine.score(prompt, 3)
        assert started.engine._child is not None
        pages = Path(f"/proc/{started.engine._child.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    started.run(burst())
    before = started.run(burst())
    after = max(started.run(burst()) for _ in range(4))
    assert after - before < 8 * 2**20


@pytest.mark.parametrize("family", ["llama-2", "gemma-2"])
def test_slots_know_nothing_of_each_other(family: str, tmp_path: Path) -> None:
    """Sequences join and leave in every order, beyond Gemma's window of 32 tokens too; rows are moved meanwhile."""
    FAMILIES[family].make(tmp_path / "checkpoint", Path())
    artifact = built(tmp_path / "checkpoint", tmp_path / "artifact")
    random = np.random.default_rng(0)
    with RECIPE.open(artifact, Compute(threads=2)) as runner:
        assert isinstance(runner, OnnxRunner)
        assert isinstance(runner.decoder, Decoder)
        slots = OnnxSlots(runner.decoder, 4, 128)
        sequences: dict[int, list[int]] = {}
        for _ in range(60):
            free = [slot for slot in range(4) if slot not in sequences]
            if free and random.random() < 0.4:
                slot = int(random.choice(free))
                sequences[slot] = random.integers(4, 900, random.integers(1, 60)).tolist()
                at = len(sequences[slot]) // 2
                parts = [part for part in (sequences[slot][:at], sequences[slot][at:]) if part]
                rows = {slot: [slots.feed(slot, np.array(part, np.int32)) for part in parts][-1]}
            elif sequences:
                chosen = random.permutation(sorted(sequences))[: random.integers(1, 5)].tolist()
                ids = random.integers(4, 900, len(chosen)).tolist()
                rows = dict(zip(chosen, slots.step(chosen, ids), strict=True))
                for slot, id_ in zip(chosen, ids, strict=True):
                    sequences[slot].append(id_)
            else:
                continue
            for slot, row in rows.items():
                np.testing.assert_allclose(row, alone(runner, sequences[slot]), atol=1e-3)
            if sequences and random.random() < 0.1:
                slot = int(random.choice(sorted(sequences)))
                slots.clear(slot)
                del sequences[slot]


def alone(runner: OnnxRunner, sequence: Sequence[int]) -> Logits:
    """Logits after a sequence, by evaluation's runner."""
    whole = np.concatenate([block.copy() for block in runner.logits(np.array([*sequence, 0], np.int32))])
    last: Logits = whole[-1]
    return last


def test_longrope_keeps_to_the_original_context(tmp_path: Path) -> None:
    """Beyond it, one long row would turn the others by its angles."""
    FAMILIES["phi-3"].make(tmp_path / "checkpoint", Path())
    path = tmp_path / "checkpoint" / "config.json"
    config = json.loads(path.read_text())
    factors = {"short_factor": [1.0] * 32, "long_factor": [4.0] * 32}
    config |= {"rope_scaling": {"type": "longrope", **factors}, "original_max_position_embeddings": 64}
    path.write_text(json.dumps(config))
    artifact = built(tmp_path / "checkpoint", tmp_path / "artifact")
    with RECIPE.open(artifact, Compute(threads=1)) as runner:
        assert isinstance(runner, OnnxRunner)
        assert model(artifact, runner, slots=2, context_tokens=4096).facts.context_tokens == 64
        assert model(artifact, runner, slots=2, context_tokens=32).facts.context_tokens == 32
