"""A Runner as a model of lm-eval's. Importing lm-eval takes seconds, so `evals.harness` imports this when it runs.

Text becomes ids exactly as in lm-eval's `hf` model, so that only the runtime differs between two artifacts.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evals.runner import Ids, Logits, Prompt, Runner
from evals.scoring import log_normalizer, target_logits

WHOLE_TOKENS = 256
"""The longest continuation whose logits are asked for whole: 256 MiB of float32 at 262,144 tokens of vocabulary."""

PROMPTS_TOGETHER = 16
"""Handed to the runner in one call, which runs together what it can."""

ENCODED_TEXTS = 64
"""Texts whose ids are kept, the latest ones."""

NEW_TOKENS = 256
"""Tokens to generate where a task does not say; `hf` has the same."""

STOP_LOOK_BACK = 2
"""Tokens beside its own in which a stop string is looked for: a model may write it in other tokens."""

Track = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps an iteration, for progress."""

Pair = tuple[Any, list[int], list[int]]
"""A request as TemplateLM encodes it: its texts, the context's ids, the continuation's ids."""

Answer = tuple[float, bool]
"""Log-likelihood of a continuation in nats, and whether greedy decoding would have given it."""


class RunnerLM(TemplateLM):  # type: ignore[misc]
    """Answers lm-eval's three kinds of requests; each context is run once for all its continuations."""

    def __init__(self, runner: Runner, tokenizer: Any, context_tokens: int, track: Track = iter) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.max_length = context_tokens
        self._runner = runner
        self._track = track
        # Each choice of a document brings the same context along.
        self._encode = functools.lru_cache(maxsize=ENCODED_TEXTS)(self._encode_anew)

    @property
    def eot_token_id(self) -> int:
        """End of text, which ends a generation."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced by: BOS, else EOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Names the chat template in lm-eval's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encode with the tokenizer's own special tokens, but no second BOS before a text that begins with one."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        return list(self._encode(string, add_special_tokens))

    def _encode_anew(self, string: str, add_special_tokens: bool | None) -> list[int]:
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **options))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation with the tokenizer's template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Answer]:
        """Encode as TemplateLM does, without its progress bar."""
        answers: list[Answer] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[Answer]:
        """Answer in the requests' order; contexts that are too long lose their beginning, as in `hf`."""
        groups: dict[tuple[int, ...], list[tuple[int, Ids]]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens; the model takes 1 to {self.max_length}"
                )
            prompt = (context + continuation)[-(self.max_length + 1) : -len(continuation)]
            groups.setdefault(tuple(prompt), []).append((index, np.array(continuation, np.int32)))
        answers: dict[int, Answer] = {}
        # Longest first, so that the time left is not guessed too short, and runtimes make room once.
        ordered = sorted(groups.items(), key=lambda group: -len(group[0]))
        for start in self._track(range(0, len(ordered), PROMPTS_TOGETHER)):
            answers |= self._answer(ordered[start : start + PROMPTS_TOGETHER])
        return [answers[index] for index in range(len(requests))]

    def _answer(self, groups: Sequence[tuple[tuple[int, ...], list[tuple[int, Ids]]]]) -> dict[int, Answer]:
        answers: dict[int, Answer] = {}
        prompts: list[Prompt] = []
        scored: list[tuple[int, Ids]] = []
        for ids, members in groups:
            prompt = np.array(ids, np.int32)
            whole = [member for member in members if len(member[1]) <= WHOLE_TOKENS]
            answers |= {index: self._stream(prompt, ids) for index, ids in members if len(ids) > WHOLE_TOKENS}
            if whole:
                prompts.append((prompt, [ids for _, ids in whole]))
                scored += whole
        for (index, targets), logits in zip(scored, self._runner.continuations(prompts), strict=True):
            answers[index] = _score(logits, targets)
        return answers

    def _stream(self, prompt: Ids, continuation: Ids) -> Answer:
        """Score one long continuation block by block."""
        ids = np.concatenate([prompt, continuation])
        at, total, greedy = 1, 0.0, True
        for block in self._runner.logits(ids):
            unscored = max(0, len(prompt) - at)
            targets = ids[at : at + len(block)][unscored:]
            at += len(block)
            if len(targets):
                value, same = _score(block[unscored:], targets)
                total, greedy = total + value, greedy and same
        return total, greedy

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Score whole texts in windows of the model's length, each token once."""
        totals = []
        for request in self._track(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = ([np.array(ids, np.int32) for ids in make_disjoint_window(window)] for window in windows)
            totals.append(sum(self._stream(context, scored)[0] for context, scored in pairs))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Generate greedily until a stop string, end of text, or the most tokens that the task allows."""
        return [self._generate(*request.args) for request in self._track(requests)]

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        settings = normalize_gen_kwargs(options, NEW_TOKENS)
        if settings["do_sample"] or settings.get("num_beams", 1) != 1:
            raise ValueError(f"{options}: only greedy generation is supported; set do_sample: false in the task")
        most = int(settings["max_gen_toks"])
        if most >= self.max_length:
            raise ValueError(
                f"max_gen_toks: {most} leaves no room for a prompt in a context of {self.max_length} tokens"
            )
        eos = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        stops = handle_stop_sequences(settings["until"], eos=eos)
        reach = [
            (stop, len(self.tok_encode(stop, add_special_tokens=False)) + STOP_LOOK_BACK) for stop in stops if stop
        ]
        prompt = np.array(self.tok_encode(context)[-(self.max_length - most) :], np.int32)
        tokens: list[int] = []
        for token in self._runner.generate(prompt, most):
            tokens.append(token)
            if token == self.eot_token_id or any(stop in self.tokenizer.decode(tokens[-n:]) for stop, n in reach):
                break
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return str(postprocess_generated_text(text, stop=stops, think_end_token=None))


def _score(logits: Logits, targets: Ids) -> Answer:
    log_likelihood = float((target_logits(logits, targets) - log_normalizer(logits)).sum())
    if not math.isfinite(log_likelihood):
        raise ValueError(f"a continuation of {len(targets)} tokens got a log-likelihood of {log_likelihood}")
    return log_likelihood, bool((logits.argmax(axis=1) == targets).all())
