"""Real clients against the real gateway over a real GGUF artifact: what they read is what the artifact says."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from pydantic import BaseModel

from evals import harness
from evals.runner import Ids, Logits, Prompt, Runner
from evals.scoring import log_normalizer, target_logits
from pipeline.backends.common import hf_tokenizer
from pipeline.backends.gguf.backend import Gguf
from pipeline.compute import Compute
from tests.support import demo
from tests.support.gateways import KEY, Served, process

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
MODEL = "demo"
RECIPE = Gguf(backend="gguf", quantization="Q8_0", imatrix=False)
TEXT = "The function returns a list of"
CHAT: Any = [{"role": "user", "content": "What is a list?"}]
DOCUMENTS = 6


class Verdict(BaseModel):
    """What a test asks for as JSON."""

    good: bool


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.gguf(tmp_path_factory.mktemp("gguf"), RECIPE)


@pytest.fixture(scope="module")
def served(artifact: Path) -> Iterator[Served]:
    limits = ("--slots", "4", "--queue", "4", "--request-bytes", "1000000", "--drain-seconds", "1", "--threads", "2")
    command = ("-m", "containers.gateway", "--artifact", str(artifact), "--host", "127.0.0.1", "--port", "0", *limits)
    with process(command) as (child, served):
        served.wait(served.ready, 60)
        yield served
        child.terminate()
        assert child.wait(30) == 0


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return served.openai


@pytest.fixture(scope="module")
def runner(artifact: Path) -> Iterator[Runner]:
    """What measured it."""
    with RECIPE.open(artifact, Compute(threads=2)) as runner:
        yield runner


@pytest.fixture(scope="module")
def ids(served: Served) -> list[int]:
    """The ids of TEXT, as the server has them."""
    return list(served.http.post("/tokenize", json={"prompt": TEXT}).json()["tokens"])


def greedy(client: openai.OpenAI, prompt: Any, **more: Any) -> list[str]:
    answer = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=12, **more)
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return [choice.text for choice in answer.choices]


# openai-python


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL) == model


def test_a_prompt_may_be_text_or_ids_one_or_several(client: openai.OpenAI, runner: Runner, ids: list[int]) -> None:
    wanted = list(runner.generate(np.array(ids, np.int32), 12))
    tokenizer = hf_tokenizer.load(demo.CHECKPOINT)
    text = tokenizer.decode(ids + wanted).removeprefix(tokenizer.decode(ids))
    assert greedy(client, TEXT) == [text]
    assert greedy(client, ids) == [text]
    other = greedy(client, "A class")
    assert greedy(client, [TEXT, "A class"]) == [text, *other]
    assert greedy(client, [ids, ids[:3]]) == [text, *greedy(client, ids[:3])]
    assert greedy(client, [TEXT, "A class"], n=2) == [text, text, *other, *other]


def test_a_chat_streams_what_it_says_whole(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "messages": CHAT, "temperature": 0, "max_completion_tokens": 10}
    whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    stream = client.chat.completions.create(
        **options, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert last.usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 10
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == text
    assert all(token.top_logprobs[0].logprob == token.logprob for token in logprobs.content)  # greedy
    streamed = [token for chunk in chunks for token in getattr(chunk.choices[0].logprobs, "content", None) or ()]
    assert [(one.token, one.logprob) for one in streamed] == [(one.token, one.logprob) for one in logprobs.content]


def test_chats_run_side_by_side_in_the_async_client(served: Served) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.address}/v1", api_key=KEY) as client:
            options: dict[str, Any] = {"model": MODEL, "messages": CHAT, "temperature": 0, "max_tokens": 10}
            stream = await client.chat.completions.create(**options, stream=True)
            streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            several = await asyncio.gather(*(client.chat.completions.create(**options) for _ in range(4)))
            return [streamed, *(one.choices[0].message.content or "" for one in several)]

    assert len(set(asyncio.run(ask()))) == 1


def test_a_seed_repeats_and_n_differ(client: openai.OpenAI) -> None:
    def ask(seed: int) -> list[str]:
        answer = client.chat.completions.create(model=MODEL, messages=CHAT, seed=seed, n=3, max_tokens=16, top_p=0.95)
        return [choice.message.content or "" for choice in answer.choices]

    first = ask(7)
    assert len(set(first)) == 3
    assert ask(7) == first
    assert ask(70) != first


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_not_in_the_text(client: openai.OpenAI, stream: bool) -> None:
    (text,) = greedy(client, TEXT)
    stop = text[5:9]
    answer: Any = client.completions.create(
        model=MODEL, prompt=TEXT, temperature=0, max_tokens=12, stop=[stop, "\0"], stream=stream
    )
    parts = [answer] if not stream else list(answer)
    assert "".join(part.choices[0].text for part in parts) == text[: text.index(stop)]
    assert parts[-1].choices[0].finish_reason == "stop"


def test_an_answer_follows_a_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=CHAT, max_tokens=100, seed=1, response_format=Verdict
    ).choices[0]
    assert isinstance(answer.message.parsed, Verdict)


def test_echo_scores_a_prompt_as_evaluation_does(client: openai.OpenAI, runner: Runner, ids: list[int]) -> None:
    """And `max_tokens=1` is what lm-eval asks for."""
    targets: Ids = np.array(ids[1:], np.int32)
    logits = np.concatenate([block.copy() for block in runner.logits(np.array(ids, np.int32))])
    expected = target_logits(logits, targets) - log_normalizer(logits)
    for more in (0, 1):
        answer = client.completions.create(
            model=MODEL, prompt=ids, echo=True, logprobs=2, max_tokens=more, temperature=0
        ).choices[0]
        found = answer.logprobs
        assert found is not None
        assert found.token_logprobs is not None
        assert found.token_logprobs[:1] == [None]
        assert found.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-4)
        assert len(found.token_logprobs) == len(ids) + more
        assert TEXT in answer.text
        assert answer.text == "".join(found.tokens or [])


@pytest.mark.parametrize(
    ("request_", "kind", "code"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found"),
        ({"prompt": "word " * 2000}, openai.BadRequestError, "context_length_exceeded"),
        ({"prompt": [1, 999_999]}, openai.BadRequestError, "invalid_token_id"),
        ({"max_tokens": -1}, openai.BadRequestError, "invalid_value"),
        ({"prompt": "a" * 1_100_000}, openai.APIStatusError, "request_too_large"),
        ({"extra_headers": {"Authorization": "Bearer wrong"}}, openai.AuthenticationError, "invalid_api_key"),
    ],
)
def test_errors_have_their_class_and_code(
    client: openai.OpenAI, request_: dict[str, Any], kind: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        client.completions.create(**{"model": MODEL, "prompt": "a", **request_})
    assert caught.value.code == code
    assert caught.value.request_id
    assert caught.value.status_code == {"request_too_large": 413}.get(code, caught.value.status_code)


def test_too_many_requests_are_told_when_to_come_back_and_do(served: Served) -> None:
    async def ask(retries: int) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{served.address}/v1", api_key=KEY, max_retries=retries) as client:
            options: dict[str, Any] = {"model": MODEL, "prompt": TEXT, "max_tokens": 100}
            wanted = [client.completions.create(**options, extra_body={"ignore_eos": True}) for _ in range(16)]
            return await asyncio.gather(*wanted, return_exceptions=True)

    refused = [one for one in asyncio.run(ask(0)) if isinstance(one, BaseException)]
    assert len(refused) == 8  # four are at work, four wait
    for one in refused:
        assert isinstance(one, openai.RateLimitError)
        assert one.code == "queue_full"
        assert int(one.response.headers["Retry-After"]) >= 1
    answered = asyncio.run(ask(20))
    assert [one.usage.completion_tokens for one in answered] == [100] * 16


# Without any client: what crosses the wire


def test_the_lines_of_a_stream(served: Served) -> None:
    body = {"messages": CHAT, "max_tokens": 4, "temperature": 0, "stream": True, "n": 2}
    with served.http.stream(
        "POST", "/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}},
        headers={"x-request-id": "abc-123"},
    ) as response:  # fmt: skip
        text = response.read().decode()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-request-id"] == "abc-123"
    assert text.endswith("data: [DONE]\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-2]]
    *deltas, usage = events
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert all(event["usage"] is None for event in deltas)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 8
    for index in (0, 1):
        own = [choice for event in deltas for choice in event["choices"] if choice["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert own[0]["delta"]["content"]
        assert all("role" not in choice["delta"] for choice in own[1:])
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["length"]


def test_a_client_that_hangs_up_frees_the_engine(served: Served) -> None:
    """llama-server's own slot, too: as many streams as it has slots are left, and the next ones are answered."""
    body = {"prompt": TEXT, "max_tokens": 900, "stream": True, "ignore_eos": True}
    for _ in range(8):
        with httpx2.stream(
            "POST", f"{served.address}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}
        ) as response:
            next(response.iter_bytes())
    served.wait(lambda: "assay_requests_running 0.0" in served.http.get("/metrics").text)
    assert len(greedy(served.openai, [TEXT] * 4)) == 4


# Other people's programs


def test_langchain(served: Served) -> None:
    chat_models = pytest.importorskip("langchain_openai")
    model = chat_models.ChatOpenAI(
        model=MODEL, base_url=f"{served.address}/v1", api_key=KEY, temperature=0, max_tokens=10, stream_usage=True
    )
    answer = model.invoke("What is a list?")
    wanted = served.openai.chat.completions.create(model=MODEL, messages=CHAT, temperature=0, max_tokens=10)
    assert answer.content == wanted.choices[0].message.content
    assert answer.usage_metadata["output_tokens"] == 10
    parts = list(model.stream("What is a list?"))
    assert "".join(part.content for part in parts) == answer.content
    assert sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata) == 10
    structured = model.with_structured_output(Verdict, method="json_schema")
    assert isinstance(structured.invoke("Is it good?", max_tokens=100), Verdict)


class WholeTexts:
    """A Runner whose continuations are scored in one pass over the whole text, as the server does it.

    On the GGUF runner's own way, which feeds a prompt's continuations together, quantized weights give other figures,
    by up to 0.2 nats a continuation at 8 bits: in llama.cpp they depend on the shape of a batch.
    """

    def __init__(self, runner: Runner) -> None:
        self.generate, self.logits, self.settings = runner.generate, runner.logits, runner.settings

    def continuations(self, prompts: Sequence[Prompt]) -> Iterator[Logits]:
        for prompt, several in prompts:
            for ids in several:
                rows = [block.copy() for block in self.logits(np.concatenate([prompt, ids]))]
                yield np.concatenate(rows)[len(prompt) - 1 :]


def test_lm_eval_finds_what_evaluation_found(
    served: Served, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evals.harness_model import RunnerLM

    if not SHARED.is_dir():
        pytest.skip(f"no tasks in {SHARED}")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with harness.quiet(tmp_path):
        from lm_eval.models.openai_completions import LocalCompletionsAPI

        theirs = LocalCompletionsAPI(
            model=MODEL, base_url=f"{served.address}/v1/completions", tokenizer=str(demo.CHECKPOINT),
            tokenizer_backend="huggingface", add_bos_token=True, num_concurrent=4, max_length=1024, seed=1,
        )  # fmt: skip
        ours = RunnerLM(WholeTexts(runner), hf_tokenizer.load(demo.CHECKPOINT), 1024)
        choices, generation = requests()
        found, wanted = theirs.loglikelihood(choices), ours.loglikelihood(choices)
        assert theirs.generate_until(generation) == ours.generate_until(generation)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-4)
    assert [same for _, same in found] == [same for _, same in wanted]


def test_lm_eval_may_take_the_servers_tokenizer(served: Served) -> None:
    from lm_eval.utils import RemoteTokenizer, check_remote_tokenizer_support

    address = f"{served.address}/v1/completions"
    assert check_remote_tokenizer_support(address, auth_token=KEY)
    remote, own = RemoteTokenizer(address, auth_token=KEY), hf_tokenizer.load(demo.CHECKPOINT)
    assert (remote.bos_token_id, remote.eos_token_id) == (own.bos_token_id, own.eos_token_id)
    text = "def f(x):\n    return 'naïve 日本'"
    ids = own.encode(text, add_special_tokens=False)
    assert remote.encode(text) == ids
    assert remote.decode(ids).strip() == text


def requests() -> tuple[list[Any], list[Any]]:
    """Multiple choice and generation, over a few documents."""
    from lm_eval.api.instance import Instance

    lines = (SHARED / "tasks/arc_easy.jsonl").read_text().splitlines()[:DOCUMENTS]
    choices, generation = [], []
    for document in map(json.loads, lines):
        question = f"{document['query']}\nAnswer:"
        choices += [
            Instance("loglikelihood", document, (question, f" {choice}"), number)
            for number, choice in enumerate(document["choices"])
        ]
        settings = {"until": [".", "\n\n"], "max_gen_toks": 8, "do_sample": False}
        generation.append(Instance("generate_until", document, (question, settings), 0))
    return choices, generation


def test_guidellm(served: Served, tmp_path: Path) -> None:
    pytest.importorskip("guidellm")
    report = tmp_path / "report.json"
    backend = f"kind=openai_http,target={served.address},request_format=/v1/completions,api_key={KEY}"
    command: list[str | Path] = [
        Path(sys.executable).parent / "guidellm", "run", "--backend", backend, "--profile", "kind=concurrent,streams=4",
        "--constraint", "kind=max_requests,count=12", "--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16",
        "--tokenizer", f"kind=hf_auto,model={demo.CHECKPOINT}", "--output", f"kind=json,path={report}",
        "--disable-console-interactive",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    assert {kind: len(those) for kind, those in benchmark["requests"].items() if those} == {"successful": 12}
    for request in benchmark["requests"]["successful"]:
        assert request["output_tokens"] == 16
