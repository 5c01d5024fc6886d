"""lm-eval's requests over a bigram table: every number can be worked out by hand."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evals.harness_model import RunnerLM
from evals.runner import Logits, Prompt
from tests.support.fakes import TableRunner

LETTERS = "<>abcdefgh"
VOCABULARY = len(LETTERS)


class Letters:
    """A tokenizer with a token a letter; < is BOS, > is EOS."""

    bos_token_id, eos_token_id, name_or_path = 0, 1, "letters"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [0] * add_special_tokens + [LETTERS.index(letter) for letter in text]

    def decode(self, ids: int | list[int], skip_special_tokens: bool = False) -> str:
        letters = [LETTERS[i] for i in np.atleast_1d(ids)]
        return "".join(letter for letter in letters if not (skip_special_tokens and letter in "<>"))


class Recording(TableRunner):
    """Keeps the prompts that it was given continuations of."""

    def __init__(self, table: Logits) -> None:
        super().__init__(table)
        self.prompts: list[str] = []

    def continuations(self, prompts: Sequence[Prompt]) -> Iterator[Logits]:
        self.prompts += [Letters().decode(prompt.tolist()) for prompt, _ in prompts]
        return super().continuations(prompts)


@pytest.fixture
def runner() -> Recording:
    return Recording(np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32))


def request(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def log_probability(runner: TableRunner, text: str) -> float:
    """Return that of all letters after the first."""
    ids = [LETTERS.index(letter) for letter in text]
    table = runner.table.astype(np.float64)
    table -= np.log(np.exp(table).sum(axis=1, keepdims=True))
    return float(sum(table[a, b] for a, b in pairwise(ids)))


def test_answers_come_in_the_requests_order_and_each_context_runs_once(runner: Recording) -> None:
    pairs = [("ab", "c"), ("a", "bc"), ("ab", "dda"), ("", "ef"), ("ab", "c"), ("a", "h")]
    found = RunnerLM(runner, Letters(), 32).loglikelihood([request(*pair) for pair in pairs])
    expected = [log_probability(runner, (context or "<")[-1] + continuation) for context, continuation in pairs]
    assert [value for value, _ in found] == pytest.approx(expected, abs=1e-5)
    assert runner.prompts == ["<ab", "<a", "<"]


def test_greedy_is_told(runner: Recording) -> None:
    best = LETTERS[int(runner.table[LETTERS.index("a")].argmax())]
    other = "b" if best != "b" else "c"
    lm = RunnerLM(runner, Letters(), 32)
    assert [greedy for _, greedy in lm.loglikelihood([request("ca", best), request("ca", other)])] == [True, False]


def test_a_context_too_long_loses_its_beginning(runner: Recording) -> None:
    RunnerLM(runner, Letters(), 4).loglikelihood([request("abcdefg", "ha")])
    assert runner.prompts == ["efg"], "with two more tokens, of which the last is never fed"
    with pytest.raises(ValueError, match="a continuation of 5 tokens; the model takes 1 to 4"):
        RunnerLM(runner, Letters(), 4).loglikelihood([request("a", "bcdef")])


def test_a_very_long_continuation_is_streamed(runner: Recording) -> None:
    text = "abcdefgh" * 50
    ((value, greedy),) = RunnerLM(runner, Letters(), 1000).loglikelihood([request("ab", text)])
    assert value == pytest.approx(log_probability(runner, "b" + text), abs=1e-3)
    assert not greedy
    assert runner.prompts == []


@pytest.mark.parametrize("context_tokens", [3, 4, 100])
def test_rolling_scores_each_token_once(runner: Recording, context_tokens: int) -> None:
    texts = ["abcdefghab", "h"]
    found = RunnerLM(runner, Letters(), context_tokens).loglikelihood_rolling([request(text) for text in texts])
    # The tokenizer puts a BOS before the text, and lm-eval another before that one, which is then scored.
    assert found == pytest.approx([log_probability(runner, "<<" + text) for text in texts], abs=1e-5)


def successors(**of: str) -> TableRunner:
    """A model that is sure which letter follows which."""
    table = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    for letter, then in of.items():
        table[LETTERS.index(letter), LETTERS.index(then)] = 9
    return TableRunner(table)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"until": ["de"], "max_gen_toks": 9}, "bc"),
        ({"until": "cd", "max_gen_toks": 9, "do_sample": False}, "b"),
        ({"until": ["h"], "max_gen_toks": 9}, "bcde"),
        ({"until": [], "max_gen_toks": 2}, "bc"),
    ],
    ids=["stop string", "one stop string", "end of text", "limit"],
)
def test_generation_ends(options: dict[str, Any], expected: str) -> None:
    lm = RunnerLM(successors(a="b", b="c", c="d", d="e", e=">"), Letters(), 32)
    assert lm.generate_until([request("a", options)]) == [expected]


def test_what_is_not_greedy_is_refused(runner: Recording) -> None:
    lm = RunnerLM(runner, Letters(), 32)
    for options in ({"do_sample": True, "temperature": 0.7}, {"temperature": 1.0}, {"num_beams": 4}):
        with pytest.raises(ValueError, match="only greedy generation is supported"):
            lm.generate_until([request("a", {"until": [], "max_gen_toks": 4, **options})])
    with pytest.raises(ValueError, match="max_gen_toks: 32 leaves no room"):
        lm.generate_until([request("a", {"until": [], "max_gen_toks": 32})])


def test_a_log_likelihood_that_is_not_finite_is_refused(runner: Recording) -> None:
    runner.table[LETTERS.index("a")] = math.nan
    with pytest.raises(ValueError, match="got a log-likelihood of nan"):
        RunnerLM(runner, Letters(), 32).loglikelihood([request("a", "b")])
