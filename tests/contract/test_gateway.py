"""The gateway over an engine that says, hangs, dies and fails as it is told: what clients and probes then see."""

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from containers.gateway import supervisor
from tests.support.fakes import FakeEngine
from tests.support.gateways import KEY, Served, gateway

ASK = {"prompt": "ab", "temperature": 0}
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with gateway(tmp_path, FakeEngine()) as running:
        yield running


def complete(served: Served, **more: Any) -> Any:
    return served.http.post("/v1/completions", json={**ASK, **more})


def events(response: httpx2.Response) -> list[Any]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_an_answer_ends_with_the_engines_end_of_sequence(served: Served) -> None:
    answer = complete(served, max_tokens=50).json()
    assert answer["choices"][0]["text"] == "One, two, three."
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_an_answer_ends_at_its_limit(served: Served) -> None:
    answer = complete(served, max_tokens=2).json()["choices"][0]
    assert (answer["text"], answer["finish_reason"]) == ("One, two", "length")


def test_a_stop_string_across_tokens_is_cut_off_and_so_is_what_follows(served: Served) -> None:
    answer = complete(served, max_tokens=50, stop=["two, th", "never"], logprobs=0).json()["choices"][0]
    assert (answer["text"], answer["finish_reason"]) == ("One, ", "stop")
    assert answer["logprobs"]["tokens"] == ["One", ", two"]


def test_the_beginning_of_a_stop_string_is_shown_when_it_was_none(served: Served) -> None:
    assert complete(served, max_tokens=3, stop="three!").json()["choices"][0]["text"] == "One, two, three"


def test_a_stream_says_what_the_whole_answer_says(served: Served) -> None:
    chunks = events(complete(served, max_tokens=50, stream=True, stream_options={"include_usage": True}))
    *deltas, usage = chunks
    assert "".join(chunk["choices"][0]["text"] for chunk in deltas) == "One, two, three."
    assert [chunk["choices"][0]["finish_reason"] for chunk in deltas][-2:] == [None, "stop"]
    assert all(chunk["usage"] is None for chunk in deltas)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 4
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1


def test_the_role_comes_with_the_first_token(served: Served) -> None:
    first, second, *_ = events(served.http.post("/v1/chat/completions", json={**CHAT, "stream": True}))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "One"}
    assert second["choices"][0]["delta"] == {"content": ", two"}
    assert first["object"] == "chat.completion.chunk"


def test_several_prompts_times_n_keep_their_order(served: Served) -> None:
    answer = complete(served, prompt=["a", "b"], n=2, max_tokens=1).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["completion_tokens"] == 4
    seeds = [sampling.seed for sampling in served.engine.samplings[-4:]]
    assert seeds == [None] * 4
    complete(served, n=2, seed=7)
    assert sorted(sampling.seed or 0 for sampling in served.engine.samplings[-2:]) == [7, 8]


def test_an_echoed_prompt_is_scored(served: Served) -> None:
    answer = complete(served, prompt=[97, 98, 99], echo=True, logprobs=1, max_tokens=1).json()["choices"][0]
    assert answer["text"] == "abcOne"
    logprobs = answer["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "c", "One"]
    assert logprobs["token_logprobs"][:3] == [None, -1 / 8, -2 / 8]
    assert logprobs["top_logprobs"][1] == {"!": -1 / 16, "b": -1 / 8}
    assert logprobs["text_offset"] == [0, 1, 2, 3]


def test_ids_of_an_answer_are_told_when_asked_for(served: Served) -> None:
    whole = complete(served, max_tokens=2, echo=True, logprobs=0, return_token_ids=True).json()["choices"][0]
    streamed = events(complete(served, max_tokens=2, stream=True, return_token_ids=True))
    assert len(whole["token_ids"]) == 2
    assert [id_ for chunk in streamed for id_ in chunk["choices"][0]["token_ids"]] == whole["token_ids"]
    assert "token_ids" not in complete(served).json()["choices"][0]


def test_scoring_alone_makes_no_token(served: Served) -> None:
    answer = complete(served, prompt=[97, 98], echo=True, logprobs=0, max_tokens=0).json()
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, -1 / 8]
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"prompt": "a" * 300}, 400, "context_length_exceeded"),
        ({"prompt": "a", "max_tokens": 255}, 400, "context_length_exceeded"),
        ({"prompt": [9999]}, 400, "invalid_token_id"),
        ({"prompt": ""}, 400, "invalid_value"),
        ({"prompt": ["a", ""]}, 400, "invalid_value"),
        ({}, 400, "missing_required_parameter"),
        ({"prompt": "a", "temperature": 3}, 400, "invalid_value"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, 400, "unsupported_parameter"),
        ({"prompt": "a", "max_tokens": 0}, 400, "invalid_value"),
        ({"prompt": "a", "n": 1000}, 400, "too_many_choices"),
        ({"prompt": "a", "model": "other"}, 404, "model_not_found"),
    ],
)
def test_bad_requests_are_named(served: Served, body: dict[str, Any], status: int, code: str) -> None:
    response = served.http.post("/v1/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["message"]


def test_unknown_keys_and_nulls_are_let_pass(served: Served) -> None:
    assert complete(served, stop=None, seed=None, repetition_penalty=1.0, logit_bias={}, user="u").status_code == 200


def test_what_is_no_json_and_what_is_no_route(served: Served) -> None:
    assert served.http.post("/v1/completions", content=b"{").json()["error"]["code"] == "invalid_json"
    assert served.http.get("/v2").json()["error"]["code"] == "unknown_url"
    assert served.http.get("/v1/completions").json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/", "/v1/models", "/metrics", "/evidence", "/health/ready", "/ping", "/nowhere"])
def test_every_path_but_liveness_wants_a_key(served: Served, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic ???"}, {"Authorization": "x"}):
        response = httpx2.get(served.address + path, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx2.get(f"{served.address}/health/live").status_code == 200


@pytest.mark.parametrize("path", ["/invocations", "/score", "/predict", "/tokenize", "/v1/chat/completions"])
def test_nothing_is_answered_without_a_key(served: Served, path: str) -> None:
    assert httpx2.post(served.address + path, json=CHAT).status_code == 401


def test_a_browser_may_give_the_key_as_a_password(served: Served) -> None:
    basic = base64.b64encode(f"anybody:{KEY}".encode()).decode()
    assert httpx2.get(f"{served.address}/", headers={"Authorization": f"Basic {basic}"}).status_code == 200


def test_another_sites_page_may_not_use_the_browsers_key(served: Served) -> None:
    basic = {"Authorization": f"Basic {base64.b64encode(f'x:{KEY}'.encode()).decode()}"}
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        response = httpx2.post(f"{served.address}/v1/completions", json=ASK, headers={**basic, "Sec-Fetch-Site": site})
        assert response.status_code == status


def test_probes_may_be_let_in_without_a_key(tmp_path: Path) -> None:
    with gateway(tmp_path, FakeEngine(), public_health=True) as served:
        assert httpx2.get(f"{served.address}/ping").status_code == 200
        assert httpx2.get(f"{served.address}/v1/models").status_code == 401


def test_a_key_that_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    with gateway(tmp_path, FakeEngine(), requests_per_minute=2) as served:
        assert [complete(served).status_code for _ in range(2)] == [200, 200]
        refused = complete(served)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 30


def test_a_full_queue_refuses_and_loses_nobody(tmp_path: Path) -> None:
    engine = FakeEngine(slots=1, delay_seconds=0.1)
    with gateway(tmp_path, engine, queue=2) as served, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: complete(served), range(8)))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200] * 3 + [429] * 5
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert engine.most_running == 1
        assert complete(served).status_code == 200


def test_too_large_a_request_is_refused_however_it_comes(tmp_path: Path) -> None:
    with gateway(tmp_path, FakeEngine(), request_bytes=1000) as served:
        assert complete(served, prompt="a" * 2000).json()["error"]["code"] == "request_too_large"
        chunked = served.http.post("/v1/completions", content=iter([b"[" * 700, b"[" * 700]))
        assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_slot(tmp_path: Path, stream: bool) -> None:
    engine = FakeEngine(slots=1, delay_seconds=0.05)
    with gateway(tmp_path, engine) as served:
        body = {**ASK, "stream": stream, "max_tokens": 200, "ignore_eos": True}
        if stream:
            with served.http.stream("POST", "/v1/completions", json=body) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx2.ReadTimeout):
                served.http.post("/v1/completions", json=body, timeout=0.3)
        served.wait(lambda: engine.cancelled == 1)
        served.wait(lambda: engine.running == 0)
        assert complete(served).status_code == 200


def test_a_client_that_goes_while_it_waits_is_never_answered(tmp_path: Path) -> None:
    engine = FakeEngine(slots=1, delay_seconds=0.1)
    with gateway(tmp_path, engine) as served:
        busy = threading.Thread(target=complete, args=(served,), kwargs={"max_tokens": 8, "ignore_eos": True})
        busy.start()
        served.wait(lambda: engine.running == 1)
        asked = len(engine.prompts)
        with pytest.raises(httpx2.ReadTimeout):
            served.http.post("/v1/completions", json=ASK, timeout=0.2)
        busy.join()
        assert complete(served, prompt="z").status_code == 200
        assert [prompt[-1] for prompt in engine.prompts[asked:]] == [ord("z")]


def test_an_answer_that_takes_too_long_ends(tmp_path: Path) -> None:
    engine = FakeEngine(delay_seconds=0.1)
    with gateway(tmp_path, engine, timeout_seconds=0.35) as served:
        body = {"max_tokens": 200, "ignore_eos": True}
        late = complete(served, **body)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        assert late.headers["x-should-retry"] == "false"
        assert events(complete(served, **body, stream=True))[-1]["error"]["code"] == "timeout"
        served.wait(lambda: engine.running == 0)


def test_readiness_waits_for_a_token(tmp_path: Path) -> None:
    engine = FakeEngine(hanging=True)
    with gateway(tmp_path, engine, ready=False) as served:
        served.wait(lambda: engine.running == 1)
        response = served.http.get("/health/ready")
        assert (response.status_code, response.json()) == (503, {"status": "the engine is loading"})
        refused = complete(served)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        engine.hanging = False
        served.wait(served.ready)


def test_an_engine_that_does_not_start_is_tried_again(tmp_path: Path) -> None:
    engine = FakeEngine(start_error="no such weights")
    with gateway(tmp_path, engine, ready=False) as served:
        served.wait(lambda: engine.starts >= 2)
        assert not served.ready()
        engine.start_error = None
        served.wait(served.ready)
        assert any(event.get("why") == "no such weights" for event in served.events)


def test_an_engine_that_dies_is_restarted_and_its_clients_are_told(tmp_path: Path) -> None:
    engine = FakeEngine(delay_seconds=0.05)
    with gateway(tmp_path, engine) as served:
        endless = {"ignore_eos": True}
        stream = served.openai.completions.create(
            model="demo", prompt="a", max_tokens=200, stream=True, extra_body=endless
        )
        next(stream)
        engine.die("was shot")
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "engine_unavailable"
        served.wait(lambda: engine.starts == 2)
        served.wait(served.ready)
        assert complete(served).status_code == 200
        assert "assay_engine_restarts 1.0" in served.http.get("/metrics").text


def test_an_engine_that_hangs_is_unready_and_then_restarted(tmp_path: Path) -> None:
    engine = FakeEngine()
    with gateway(tmp_path, engine, stall_seconds=0.5) as served, ThreadPoolExecutor(1) as pool:
        engine.hanging = True
        waiting = pool.submit(complete, served)
        served.wait(lambda: not served.ready())
        served.wait(lambda: engine.starts == 2)
        assert waiting.result().json()["error"]["code"] == "engine_unavailable"
        engine.hanging = False
        served.wait(served.ready)


def test_an_idle_engine_that_hangs_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "IDLE_PROBE_SECONDS", 0.1)
    engine = FakeEngine()
    with gateway(tmp_path, engine, stall_seconds=0.5) as served:
        engine.hanging = True
        served.wait(lambda: engine.starts == 2)
        assert not served.ready()
        engine.hanging = False
        served.wait(served.ready)


def test_an_answer_that_fails_before_its_first_token_is_no_200(tmp_path: Path) -> None:
    engine = FakeEngine()
    with gateway(tmp_path, engine) as served:
        engine.generate_error = "out of memory"
        assert complete(served, stream=True).status_code == 503


@pytest.mark.parametrize("route", ["/v1/completions", "/tokenize"])
def test_a_fault_of_the_servers_own_is_logged_with_the_requests_id(
    served: Served, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(served.engine, "tokenize", broken)
    response = served.http.post(route, json=ASK)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "a fault" not in response.text
    (noted,) = (event for event in served.events if event["event"] == "internal_error")
    assert noted["request_id"] == response.headers["x-request-id"]
    assert "a fault" in noted["error"]


def test_metrics_count_what_happened(served: Served) -> None:
    complete(served, max_tokens=50)
    complete(served, model="other")
    refused = 'assay_requests_total{route="/v1/completions",status="404"} 1.0'
    served.wait(lambda: refused in served.http.get("/metrics").text)  # it counts once the answer is out
    text = served.http.get("/metrics").text
    for line in (
        'assay_requests_total{route="/v1/completions",status="200"} 1.0',
        "assay_prompt_tokens_total 3.0",
        "assay_generated_tokens_total 4.0",
        "assay_ttft_seconds_count 1.0",
        "assay_tpot_seconds_count 1.0",
        "assay_end_to_end_seconds_count 1.0",
        "assay_queue_length 0.0",
        "assay_ready 1.0",
    ):
        assert line in text.splitlines()


def test_evidence_is_what_the_records_say(tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    (records / "quality.json").write_text('{"perplexity": 12.5}')
    with gateway(tmp_path, FakeEngine(), evidence=records) as served:
        evidence = served.http.get("/evidence").json()
        assert evidence["quality"] == {"perplexity": 12.5}
        assert evidence["artifact"]["digest"] == "a" * 64
        assert served.http.get("/v1/models").json()["data"][0]["artifact"] == "a" * 64


def test_the_log_has_ids_and_names_and_no_text(tmp_path: Path) -> None:
    with gateway(tmp_path, FakeEngine()) as served:
        response = served.http.post(
            "/v1/completions", json=ASK | {"prompt": "private"}, headers={"x-request-id": "abc"}
        )
        assert response.headers["x-request-id"] == "abc"
        served.wait(lambda: any(event["event"] == "request" for event in served.events))
        (noted,) = (event for event in served.events if event["event"] == "request")
        assert (noted["request_id"], noted["key"], noted["status"]) == ("abc", "tests", 200)
        assert "private" not in str(served.events)
        assert KEY not in str(served.events)


def test_prompts_are_logged_when_asked_for(tmp_path: Path) -> None:
    with gateway(tmp_path, FakeEngine(), log_prompts=True) as served:
        complete(served, prompt="public")
        assert "public" in str(served.events)


def test_sagemaker_and_azure_ask_by_their_own_routes(served: Served) -> None:
    assert served.http.get("/ping").status_code == 200
    for route in ("/invocations", "/score"):
        assert served.http.post(route, json=CHAT).json()["object"] == "chat.completion"
        assert served.http.post(route, json=ASK).json()["object"] == "text_completion"
        assert len(events(served.http.post(route, json={**CHAT, "stream": True}))) > 2


def test_vertex_asks_by_the_routes_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/vertex/health")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/vertex/predict")
    with gateway(tmp_path, FakeEngine()) as served:
        assert served.http.get("/vertex/health").status_code == 200
        body = {"instances": [ASK, CHAT], "parameters": {"max_tokens": 1}}
        text, chat = served.http.post("/vertex/predict", json=body).json()["predictions"]
        assert text["choices"][0]["text"] == "One"
        assert chat["choices"][0]["message"]["content"] == "One"
        assert served.http.post("/vertex/predict", json=CHAT).json()["object"] == "chat.completion"


def test_tokenizing_and_back(served: Served) -> None:
    assert served.http.post("/tokenize", json={"prompt": "ab"}).json()["tokens"] == [FakeEngine.BOS, 97, 98]
    plain = served.http.post("/tokenize", json={"prompt": "ab", "add_special_tokens": False}).json()
    assert plain == {"tokens": [97, 98], "count": 2, "max_model_len": 256}
    assert served.http.post("/detokenize", json={"tokens": [97, 98]}).json() == {"prompt": "ab"}
    assert served.http.post("/tokenize", json={**CHAT}).json()["count"] > 10
    assert served.http.get("/tokenizer_info").json()["eos_token_id"] == FakeEngine.EOS


def test_a_schema_reaches_the_engine_or_is_refused(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    with gateway(tmp_path, FakeEngine()) as served:
        assert served.http.post("/v1/chat/completions", json=CHAT | wanted).status_code == 200
        assert served.engine.samplings[-1].schema == schema
    with gateway(tmp_path, FakeEngine(schemas=False)) as served:
        refused = served.http.post("/v1/chat/completions", json=CHAT | wanted)
        assert refused.json()["error"]["code"] == "unsupported_parameter"
