"""What a running image has to prove over its HTTP port, each as a Check: it serves the artifact that was measured."""

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from evals import interference, load_client, perplexity
from evals.interference import Watching
from evals.perplexity import Perplexity
from evals.runner import Ids
from evals.tokens import Tokens
from evals.windows import Windows
from pipeline import endings
from pipeline.errors import BuildError, VerificationError
from pipeline.images.container import Container
from pipeline.progress import note
from pipeline.records import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What may lie between the artifact in process and in the image."""

    perplexity: float
    """Relative."""
    tie_nats: float
    """Where the likeliest two tokens are closer than this, a batch of another shape may turn them round."""


SAME_CODE = Tolerance(perplexity=1e-3, tie_nats=0.05)
"""The code that scored serves the same weights; another processor's kernels add up in another order."""
OTHER_KERNELS = Tolerance(perplexity=5e-3, tie_nats=0.25)
"""What serves has kernels of its own, chosen by a batch's shape, and logits in bfloat16: between 16 and 32 these are
0.125 apart. vLLM's perplexities of the demo were up to 7e-4 from transformers'."""

LEAST_SHARE = 0.7
"""The share of the measured throughput that an image must reach: two runs of one thing differ."""

TRIES = 3
WORDS_LETTERS = 500
"""Letters of an error's reply that are repeated in ours."""
REPLY_SECONDS = 600.0

Track = Callable[[Iterable[Ids]], Iterable[Ids]]


class Client:
    """A running gateway, spoken to with its key."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        self._http = httpx2.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=REPLY_SECONDS, trust_env=False
        )

    def get(self, route: str) -> Any:
        """Return the JSON of a good reply; VerificationError with the server's words else."""
        return _good(self._http.get(route))

    def ready(self) -> bool:
        """Whether the engine has answered."""
        try:
            return self._http.get("/health/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def complete(self, prompt: Ids, **more: Any) -> dict[str, Any]:
        """Return the one choice of a completion."""
        body = {"prompt": prompt.tolist(), "temperature": 0, **more}
        choice: dict[str, Any] = _good(self._http.post("/v1/completions", json=body))["choices"][0]
        return choice

    def stream(self, prompt: Ids, tokens: int) -> Any:
        """Begin a streamed completion."""
        body = {"prompt": prompt.tolist(), "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        return self._http.stream("POST", "/v1/completions", json=body)

    def refuses(self) -> bool:
        """Whether a new request is turned away for now."""
        return self._http.post("/v1/completions", json={"prompt": "a"}).status_code == 503

    @property
    def model(self) -> str:
        """Name that the server answers to."""
        return str(self.get("/v1/models")["data"][0]["id"])


def _good(response: httpx2.Response) -> Any:
    if response.is_error:
        told = response.text[:WORDS_LETTERS]
        raise VerificationError(f"the image answered {response.request.url.path} with {response.status_code}: {told}")
    return response.json()


def kernels(running: Container) -> Check:
    """Try llama.cpp's kernels on this machine's processor, in a process of their own: wrong ones may end it."""
    try:
        found, passed = running.beside("python3", "-m", "pipeline.toolchains.llama_cpp.selftest"), True
    except BuildError as error:
        found, passed = str(error), False
    return Check(name="kernels", passed=passed, found=found, expected="every weight type as a reference computes it")


def evidence(client: Client, records: Mapping[str, Path]) -> Check:
    """Hold /evidence against the records that were measured."""
    served = client.get("/evidence")
    differing = [name for name, path in records.items() if served.get(name) != json.loads(path.read_bytes())]
    return Check(
        name="evidence",
        passed=not differing,
        found=f"{len(served)} records" if not differing else f"others for {', '.join(differing)}",
        expected=f"the records {', '.join(sorted(records))} as they are in this repository",
    )


def authentication(url: str) -> Check:
    """Ask for everything without a key and with a wrong one."""
    routes = ("/v1/models", "/evidence", "/metrics", "/health/ready", "/ping", "/")
    let_in = [
        route
        for route in routes
        for headers in ({}, {"Authorization": "Bearer wrong"})
        if httpx2.get(url + route, headers=headers, trust_env=False).status_code != 401
    ]
    for route in ("/v1/completions", "/v1/chat/completions", "/invocations", "/tokenize"):
        if httpx2.post(url + route, json={"prompt": "a"}, trust_env=False).status_code != 401:
            let_in.append(route)
    return Check(
        name="authentication",
        passed=not let_in,
        found="all refused" if not let_in else f"let in at {', '.join(sorted(set(let_in)))}",
        expected="401 without a key and with a wrong one",
    )


def greedy(
    client: Client,
    prompts: Windows,
    measured: Tokens,
    tolerance: Tolerance,
    ends: Collection[int],
    track: Track = iter,
) -> Check:
    """Compare greedy answers with the artifact's own, in process, token for token.

    A first difference where the artifact itself is undecided, its likeliest two tokens a tie, is none. From a token on
    that ends an answer, one of `ends`, nothing is compared: told to go on, some servers forbid it and others write it.
    """
    equal = ties = 0
    differs = ""
    tokens = measured.greedy.shape[1]
    for prompt, ours, margins in zip(track(prompts.ids), measured.greedy, measured.margins, strict=True):
        served = client.complete(prompt, max_tokens=tokens, ignore_eos=True, return_token_ids=True)["token_ids"]
        # None is a token that the runtime does not tell, part of a character: those around it are compared.
        until = next((at for at, id_ in enumerate(ours) if id_ in ends), tokens)
        pairs = enumerate(zip(ours[:until], served, strict=False))
        places = [at for at, (one, two) in pairs if two is not None and one != two]
        if len(served) == tokens and not places:
            equal += 1
        elif not places:
            differs = f"; one has {len(served)} tokens"
        elif margins[places[0]] < tolerance.tie_nats:
            ties += 1
        else:
            apart = f"{margins[places[0]]:.3f} nats lie between the likeliest two"
            differs = f"; one differs from token {places[0]} on, where {apart}"
    count = len(prompts)
    return Check(
        name="greedy answers",
        passed=equal + ties == count,
        found=f"{equal} of {count} equal, {ties} part at a tie{differs}",
        expected=f"the artifact's own {tokens} tokens, or those up to its answer's end, after each of {count} prompts",
    )


def scores(client: Client, windows: Windows, measured: Perplexity, tolerance: Tolerance, track: Track = iter) -> Check:
    """Work perplexity out of echoed log-probabilities and hold it against the measured one."""
    rows = []
    for ids in track(windows.ids):
        choice = client.complete(ids, max_tokens=0, echo=True, logprobs=0)
        rows.append([-value for value in choice["logprobs"]["token_logprobs"][1:]])
    found = perplexity.summarize(np.array(rows), windows).perplexity.value
    expected = measured.perplexity.value
    return Check(
        name="perplexity",
        passed=abs(found / expected - 1) <= tolerance.perplexity,
        found=f"{found:.6g}",
        expected=f"{expected:.6g} within {tolerance.perplexity:g} relative",
        detail=f"{found / expected - 1:+.2e} relative",
    )


def throughput(
    client: Client,
    prompts: Sequence[Ids],
    *,
    output_tokens: int,
    concurrency: int,
    measured: float,
    watching: Watching,
) -> Check:
    """Put the server under a short load until it reaches LEAST_SHARE of the measured tokens/s.

    There are TRIES, and as many more as evals.interference has pauses for while too much else runs on the machine.
    """
    rates: list[float] = []
    busy: tuple[str, ...] = ()
    for pause in (*interference.PAUSES, None):
        with watching() as seen:
            exchanges = load_client.closed_loop(
                client.url,
                client.model,
                warmup=[prompt.tolist() for prompt in prompts[:concurrency]],
                prompts=[prompt.tolist() for prompt in prompts[concurrency:]],
                output_tokens=output_tokens,
                concurrency=concurrency,
                key=client.key,
            )
        wall = max(one.end_seconds for one in exchanges) - min(one.start_seconds for one in exchanges)
        rates.append(sum(one.completion_tokens for one in exchanges) / wall)
        busy = interference.problems(seen.interference)
        if rates[-1] >= LEAST_SHARE * measured or pause is None or (not busy and len(rates) >= TRIES):
            break
        if busy:
            note(f"throughput of the image: {'; '.join(busy)}: measured again in {pause:g} s")
            time.sleep(pause)
    passed = max(rates) >= LEAST_SHARE * measured
    found = f"{max(rates):.4g} output tokens/s at {concurrency} streams"
    if busy and not passed:
        found += f", on a busy machine ({'; '.join(busy)}); let it come to rest and run `dvc repro verification`"
    return Check(
        name="throughput",
        passed=passed,
        found=found,
        expected=f"at least {LEAST_SHARE:g} of the measured {measured:.4g}",
    )


def drain(
    client: Client, prompt: Ids, tokens: int, terminate: Callable[[], None], wait: Callable[[], int | None]
) -> Check:
    """Send SIGTERM in the middle of an answer: it must come to its end, a new one be refused, the exit code be 0."""
    refused, ended = True, False
    with suppress(httpx2.TransportError), client.stream(prompt, tokens) as response:
        lines = response.iter_lines()
        next(lines)
        terminate()
        with suppress(httpx2.TransportError):  # nobody listens any more, which is a refusal as well
            refused = client.refuses()
        ended = [line for line in lines if line][-1:] == ["data: [DONE]"]
    code = wait()
    return Check(
        name="drain",
        passed=ended and refused and code == 0,
        found=f"the answer {'came to its end' if ended else 'was cut off'}, a new request "
        f"{'was refused' if refused else 'was let in'}, the server "
        f"{'did not end' if code is None else endings.words(code)}",
        expected="after SIGTERM: the answer at its end, a new request refused, the server exited with 0",
    )
