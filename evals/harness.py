"""lm-evaluation-harness's tasks on any Runner."""

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from evals.answers import Answers, Asked, Outcome, Score
from evals.runner import Runner

TASKS = Path(__file__).parent / "tasks"
"""Our own tasks, a YAML file each, named like the task. lm-eval's 14,000 are indexed only where one is wanted."""

DIGEST_CHARACTERS = 16
"""Characters that are kept of lm-eval's sha256 of a document."""

SEED = 1234
"""The seed of the choice of few-shot examples: lm-eval's default."""

CORRECT = ("acc", "exact_match")
"""Metrics that say of one document whether its answer is right, the plainest first."""


def run(
    runner: Runner,
    tokenizer: Any,
    names: Sequence[str],
    *,
    context_tokens: int,
    cache: Path,
    limit: int | None = None,
    chat: bool = False,
    tasks: Sequence[Path] = (TASKS,),
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Asked:
    """Answer the named tasks, tags or groups; return the answers by task, and why some cannot be had.

    `tokenizer` is the checkpoint's, from transformers; `limit` takes the first documents of each task; `chat` renders
    prompts with the tokenizer's chat template. `cache` keeps the datasets in the form that `datasets` reads. `tasks`
    are folders of tasks in YAML files. Raises ValueError for a task that is unknown, cannot be loaded or wants
    sampling, ConnectionError for data out of reach.
    """
    with quiet(cache):
        from lm_eval.evaluator import evaluate

        from evals.harness_model import RunnerLM

        loaded = _load(names, tasks)
        impossible = {name: why for name, task in loaded.items() if (why := _too_long(task, context_tokens))}
        possible = {name: task for name, task in loaded.items() if name not in impossible}
        if not possible:
            return Asked(answers={}, impossible=impossible)
        for task in possible.values():
            # As simple_evaluate does, which would also ask git, pip and the processor for versions: seconds.
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEED)
        found = evaluate(
            RunnerLM(runner, tokenizer, context_tokens, track),
            {"tasks": possible, "groups": {}, "group_map": {}},  # whose averages are not used
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    answers = {name: _answers(found["results"][name], found["samples"][name]) for name in possible}
    return Asked(answers=answers, impossible=impossible)


def _load(names: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """Load tasks and their data. What goes wrong in a task's own code or data set comes as any kind of error."""
    from lm_eval.tasks import TaskManager

    ours = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    manager = TaskManager(include_path=[str(one) for one in folders], include_defaults=not ours.issuperset(names))
    if unknown := sorted(set(names) - set(manager.all_tasks)):
        raise ValueError(f"lm-eval knows no task {', '.join(unknown)}")
    found: dict[str, Any] = {}
    for name in names:
        try:
            found |= manager.load([name])["tasks"]
        except ConnectionError:
            raise
        except Exception as error:
            told = str(error).strip().partition("\n")[0]
            raise ValueError(f"lm-eval cannot load the task {name} ({type(error).__name__}: {told})") from error
    return found


def _too_long(task: Any, context_tokens: int) -> str | None:
    """Say why the model's context is too short for a task that generates; None where it is not."""
    from lm_eval.models.utils import normalize_gen_kwargs

    from evals.harness_model import NEW_TOKENS

    if task.get_config("output_type") != "generate_until":
        return None
    most = int(normalize_gen_kwargs(task.get_config("generation_kwargs") or {}, NEW_TOKENS)["max_gen_toks"])
    if most < context_tokens:
        return None
    return f"it generates up to {most} tokens, and the checkpoint's context is {context_tokens}: no room for a prompt"


def _answers(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> Answers:
    """Take a task's first filter: several would judge the same answers in several ways."""
    name = samples[0]["filter"]
    first = [sample for sample in samples if sample["filter"] == name]
    metrics = {
        key.removesuffix(f",{name}"): float(value)
        for key, value in results.items()
        if key.endswith(f",{name}") and isinstance(value, int | float)
    }
    scores = {
        metric: Score(value=value, standard_error=_standard_error(value, [sample.get(metric) for sample in first]))
        for metric, value in metrics.items()
        if "_stderr" not in metric
    }
    return Answers(metrics=scores, outcomes=tuple(_outcome(sample) for sample in first))


def _standard_error(value: float, values: Sequence[Any]) -> float | None:
    """Return that of a mean over documents.

    lm-eval gives none without a bootstrap, which it would also run on plain means.
    """
    numbers = [float(one) for one in values if isinstance(one, int | float)]
    if len(numbers) < max(2, len(values)) or not math.isclose(fmean(numbers), value, abs_tol=1e-9):
        return None
    return stdev(numbers) / math.sqrt(len(numbers))


def _outcome(sample: Mapping[str, Any]) -> Outcome:
    judged = next((sample[metric] for metric in CORRECT if metric in sample), None)
    return Outcome(
        document=sample["doc_hash"][:DIGEST_CHARACTERS],
        chosen=_chosen(sample["filtered_resps"]),
        correct=None if judged is None else bool(judged == 1),
    )


def _chosen(responses: Sequence[Any]) -> str | None:
    """Say what the answer was: the likeliest of several choices, the text, or whether one continuation was greedy."""
    if isinstance(responses[0], str):
        return responses[0]
    if not isinstance(responses[0], Sequence):
        return None
    if len(responses) == 1:
        return str(bool(responses[0][1]))
    likelihoods = [likelihood for likelihood, _ in responses]
    return str(likelihoods.index(max(likelihoods)))


@contextlib.contextmanager
def quiet(cache: Path) -> Iterator[None]:
    """Keep stdout and the log clean, and the datasets' cache in `cache`. Errors are raised, not logged."""
    import datasets

    level, place = logging.root.manager.disable, datasets.config.HF_DATASETS_CACHE
    bars = datasets.are_progress_bars_disabled()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = cache.absolute()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        datasets.config.HF_DATASETS_CACHE = place
        logging.disable(level)
        if not bars:
            datasets.enable_progress_bars()
