"""The transformers engine: a worker process with the demo's GPTQ or AWQ build, and its slots on other architectures."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, Lfm2Config, Lfm2ForCausalLM, LlamaConfig, LlamaForCausalLM

from containers.engines.contract import Facts, Sampling, Token, UnsupportedError
from containers.engines.python import PythonEngine
from containers.engines.transformers.slots import TransformersSlots, can_batch
from evals.runner import Ids, Runner
from evals.scoring import score
from evals.windows import Windows
from pipeline.backends.awq.backend import Awq
from pipeline.backends.common import hf_tokenizer
from pipeline.backends.common.causal_lm import CausalLMRunner
from pipeline.backends.gptq.backend import Gptq
from pipeline.compute import Compute
from pipeline.records import FILE, Artifact
from tests.contract import packed

Rows = npt.NDArray[np.float32]
"""[tokens, vocabulary]."""

SLOTS = 3
CONTEXT = 512
RECIPES: dict[str, Gptq | Awq] = {"gptq": Gptq(backend="gptq", bits=4), "awq": Awq(backend="awq", bits=4)}


class Started(NamedTuple):
    """An engine that is up, and what its answers are held against."""

    loop: asyncio.Runner
    engine: PythonEngine
    facts: Facts
    artifact: Path
    runner: Runner
    windows: Windows


@pytest.fixture(scope="module", params=list(RECIPES))
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    pytest.importorskip("gptqmodel")
    recipe = RECIPES[request.param]
    case = packed.case(tmp_path_factory.mktemp("corpus"))
    artifact = tmp_path_factory.mktemp(request.param) / "artifact"
    shutil.copytree(packed.built(recipe, case, tmp_path_factory), artifact)
    record = Artifact(name="it", recipe=recipe.model_dump(), checkpoint="", calibration="", digest="")
    record.save(artifact / FILE)
    with asyncio.Runner() as loop, recipe.open(artifact, Compute(threads=2)) as runner:
        engine = PythonEngine(artifact, compute=Compute(threads=2), slots=SLOTS, context_tokens=CONTEXT)
        facts = loop.run(engine.start())
        yield Started(loop, engine, facts, artifact, runner, case.evaluation)
        loop.run(engine.stop())


def greedy(tokens: int) -> Sampling:
    return Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)


async def ids(stream: AsyncGenerator[Token, None]) -> list[int]:
    return [token.id async for token in stream]


def assert_likeliest(started: Started, prompt: Ids, answer: Sequence[int]) -> None:
    """No token may be far from the likeliest one: sums over several rows round differently, which decides near ties."""
    whole = np.array([*prompt, *answer], np.int32)
    rows = packed.logits(started.runner, whole)[len(prompt) - 1 :]
    np.testing.assert_array_less(rows.max(axis=1) - rows[np.arange(len(answer)), answer], 0.15)


def test_facts(started: Started) -> None:
    config = json.loads((started.artifact / "config.json").read_text())
    assert started.facts.context_tokens == CONTEXT
    assert started.facts.vocabulary_size == config["vocab_size"]
    assert (started.facts.bos_id, started.facts.eos_id) == (config["bos_token_id"], config["eos_token_id"])
    assert (started.facts.slots, started.facts.schemas) == (SLOTS, False)
    assert "gptqmodel" in started.facts.runtime


def test_one_stream_is_the_runners_greedy_continuation(started: Started) -> None:
    for prompt in (started.windows.ids[0][:32], started.windows.ids[1][:1]):
        answer = started.loop.run(ids(started.engine.generate(prompt.tolist(), greedy(48))))
        assert answer == list(started.runner.generate(prompt, 48))


def test_streams_beside_each_other(started: Started) -> None:
    """More requests than slots, of all lengths; each must get what the model says to its own prompt."""
    lengths, budgets = (7, 100, 31, 1, 64), (40, 9, 1, 33, 24)
    prompts = [window[:length] for window, length in zip(started.windows.ids, lengths, strict=False)]

    async def all_of_them() -> list[list[int]]:
        streams = [
            started.engine.generate(prompt.tolist(), greedy(budget))
            for prompt, budget in zip(prompts, budgets, strict=True)
        ]
        return await asyncio.gather(*(ids(stream) for stream in streams))

    answers = started.loop.run(all_of_them())
    assert [len(answer) for answer in answers] == list(budgets)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert_likeliest(started, prompt, answer)


def test_a_late_request_does_not_wait_for_the_first(started: Started) -> None:
    first, second = started.windows.ids[0][:20], started.windows.ids[1][:50]

    async def late() -> tuple[list[int], list[int], bool]:
        stream = started.engine.generate(first.tolist(), greedy(300))
        before = [(await anext(stream)).id for _ in range(5)]
        rest = asyncio.create_task(ids(stream))
        answer = await ids(started.engine.generate(second.tolist(), greedy(10)))
        waited = rest.done()
        return before + await rest, answer, waited

    long, short, waited = started.loop.run(late())
    assert not waited
    assert (len(long), len(short)) == (300, 10)
    assert_likeliest(started, first, long)
    assert_likeliest(started, second, short)


def test_a_cancelled_request_frees_its_slot(started: Started) -> None:
    prompt = started.windows.ids[0][:20].tolist()

    async def cancelled() -> list[int]:
        for _ in range(SLOTS + 1):
            stream = started.engine.generate(prompt, greedy(CONTEXT - 20))
            await anext(stream)
            await stream.aclose()
        return await asyncio.wait_for(ids(started.engine.generate(prompt, greedy(5))), timeout=30)

    assert len(started.loop.run(cancelled())) == 5


def test_a_seed_repeats(started: Started) -> None:
    prompt = started.windows.ids[0][:20].tolist()

    def sampled(seed: int) -> list[int]:
        sampling = Sampling(max_tokens=24, temperature=3.0, top_p=0.9, seed=seed, ignore_eos=True)
        return started.loop.run(ids(started.engine.generate(prompt, sampling)))

    assert sampled(1) == sampled(1) != sampled(2)


def test_scores_are_evaluations(started: Started) -> None:
    """Also while tokens are generated, with another head, between two blocks of the window."""
    window = started.windows.ids[:1]
    windows = Windows(ids=window, document=np.zeros(1, np.int32), utf8_bytes=np.ones(1, np.int64))
    expected = score(started.runner, windows)

    async def both() -> list[Token]:
        stream = asyncio.create_task(ids(started.engine.generate([1], greedy(100))))
        tokens = await started.engine.score(window[0].tolist(), 2)
        await stream
        return tokens

    first, *rest = started.loop.run(both())
    assert first.logprob is None
    assert [first.id, *(token.id for token in rest)] == window[0].tolist()
    np.testing.assert_allclose(np.array([token.logprob for token in rest], float), -expected[0], atol=1e-6)
    for token in rest:
        best, second = token.candidates
        assert token.logprob is not None
        assert best.logprob >= max(second.logprob, token.logprob)


def test_text(started: Started) -> None:
    engine, text = started.engine, "The interpreter's naïve 🙂 answer"
    messages = [{"role": "user", "content": text}]
    tokenizer = hf_tokenizer.load(started.artifact)
    encoded = started.loop.run(engine.tokenize(text, add_special=False))
    assert encoded == tokenizer.encode(text, add_special_tokens=False)
    assert started.loop.run(engine.detokenize(encoded)) == text
    rendered = started.loop.run(engine.render(messages, add_generation_prompt=True))
    assert rendered == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    with pytest.raises(UnsupportedError, match="schema"):
        started.loop.run(ids(engine.generate(encoded, Sampling(max_tokens=1, schema={}))))


def test_memory_stays_flat(started: Started) -> None:
    prompt = started.windows.ids.flatten()[:220].tolist()  # then the answer outgrows the first piece of cache

    async def burst() -> int:
        streams = [started.engine.generate(prompt, greedy(80)) for _ in range(2 * SLOTS)]
        await asyncio.gather(*(ids(stream) for stream in streams))
        assert started.engine._child is not None
        pages = int(Path(f"/proc/{started.engine._child.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    started.loop.run(burst())
    before = started.loop.run(burst())
    after = max(started.loop.run(burst()) for _ in range(2))
    assert after - before < 16 * 2**20


TINY: dict[str, Any] = {
    "vocab_size": 200, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip


def gemma2() -> Any:
    """Soft caps in attention and head, and windows shorter than the sequences in every other layer."""
    return Gemma2ForCausalLM(Gemma2Config(**TINY, head_dim=16, sliding_window=8, query_pre_attn_scalar=16))


def lfm2() -> Any:
    """Convolutions, which see their neighbours whatever attention sees."""
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    return Lfm2ForCausalLM(Lfm2Config(**TINY, layer_types=kinds))


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**TINY))


def longrope() -> Any:
    """RoPE that takes other frequencies where any sequence of a batch is long."""
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 24, "factor": 8.0,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**TINY, rope_parameters=rope, max_position_embeddings=128))


@torch.inference_mode()
def alone(model: Any, sequence: Ids, prompt: int) -> Rows:
    """Return the logits after the prompt and after each later token, as the model's own cache gives them."""
    rows, cache = [], None
    for part in np.split(sequence[:-1].astype(np.int64), range(prompt, len(sequence) - 1)):
        output = model(input_ids=torch.from_numpy(part)[None], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        rows.append(output.logits[0, -1].numpy())
    return np.array(rows)


def together(slots: TransformersSlots, sequences: Sequence[Ids], prompts: Sequence[int]) -> list[Rows]:
    """Return the same for all, each put into a slot as soon as one is free; prompts go in in parts."""
    rows: list[list[npt.NDArray[np.float32]]] = [[] for _ in sequences]
    waiting, running = list(range(len(sequences))), dict[int, int]()
    while waiting or running:
        if waiting and len(running) < slots.count:
            one = waiting.pop(0)
            running[one] = min(set(range(slots.count)) - set(running.values()))
            *head, tail = np.split(sequences[one][: prompts[one]], range(5, prompts[one], 5))
            for part in head:
                slots.feed(running[one], part)
            rows[one].append(slots.feed(running[one], tail))
        ids = [int(sequences[one][prompts[one] + len(rows[one]) - 1]) for one in running]
        for one, row in zip(list(running), slots.step(list(running.values()), ids), strict=True):
            rows[one].append(row)
            if prompts[one] + len(rows[one]) == len(sequences[one]):
                slots.clear(running.pop(one))
    return [np.array(found) for found in rows]


@pytest.mark.parametrize(("make", "batches"), [(llama, True), (gemma2, True), (lfm2, False), (longrope, False)])
def test_a_sequence_beside_others_is_the_sequence_alone(make: Any, batches: bool) -> None:
    """They begin and end at different times, so that the rows of a step change."""
    torch.manual_seed(0)
    model = make().float()
    runner = CausalLMRunner(model)
    assert can_batch(runner) == batches
    random = np.random.default_rng(0)
    sequences = [random.integers(3, 200, length, dtype=np.int32) for length in (40, 23, 31, 18)]
    prompts = (20, 5, 9, 1)
    found = together(TransformersSlots(runner, 3), sequences, prompts)
    for sequence, prompt, rows in zip(sequences, prompts, found, strict=True):
        np.testing.assert_allclose(rows, alone(model, sequence, prompt), atol=1e-3)
