"""lm-eval's own `hf` model and ours answer the same requests alike, and so do the other runtimes on one checkpoint."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from evals import harness
from evals.runner import Runner
from pipeline.backends.common import hf_tokenizer
from pipeline.backends.common.causal_lm import CausalLMRunner
from pipeline.backends.contract import Backend
from pipeline.backends.gguf.backend import Gguf
from pipeline.backends.onnx.backend import Onnx
from pipeline.compute import Compute
from pipeline.texts import cloze, read

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
DEMO = ROOT / "models/demo"
DOCUMENTS = 24

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "easy": ("arc_easy", CHOICE | {"doc_to_text": "{{query}}\nAnswer:"}),
    "book": ("openbook_qa", CHOICE | {"doc_to_text": "{{query}}", "num_fewshot": 2, "fewshot_split": "test"}),
    "lambada": (
        "lambada_openai",
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{context}}",
            "doc_to_target": " {{continuation}}",
            "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc"}],
        },
    ),
    "rolling": (
        "lambada_openai",
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{context}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
    ),
    "generation": (
        "lambada_openai",
        {
            "output_type": "generate_until",
            "doc_to_text": "{{context}}",
            "doc_to_target": "{{continuation}}",
            "generation_kwargs": {"until": [".", "\n\n"], "max_gen_toks": 24, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    ),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks over the shared data."""
    if not SHARED.is_dir():
        pytest.skip(f"no third-party checkpoint and tasks in {SHARED}")
    folder = tmp_path_factory.mktemp("tasks")
    for name, (data, settings) in TASKS.items():
        files = {"data_files": {"test": str(SHARED / "tasks" / f"{data}.jsonl")}}
        task = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **settings}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def load(folder: Path) -> Any:
    return cast(Any, AutoModelForCausalLM).from_pretrained(folder, dtype=torch.float32)


def responses(lm: Any, tasks: Path, cache: Path) -> dict[str, list[Any]]:
    """What a model of lm-eval's gives back, by task, in the order of the documents."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    with harness.quiet(cache):
        found = simple_evaluate(
            model=lm,
            tasks=list(TASKS),
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            limit=DOCUMENTS,
            bootstrap_iters=0,
        )
    return {name: [sample["filtered_resps"] for sample in found["samples"][name]] for name in TASKS} | {
        f"{name} results": [found["results"][name]] for name in TASKS
    }


def test_ours_answers_as_lm_evals_own_hf_model(tasks: Path, tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from evals.harness_model import RunnerLM

    folder = SHARED / "TinyStories-656K"
    model, tokenizer = load(folder), hf_tokenizer.load(folder)
    context = model.config.max_position_embeddings
    ours = responses(RunnerLM(CausalLMRunner(model), tokenizer, context), tasks, tmp_path)
    theirs = responses(HFLM(pretrained=load(folder), tokenizer=tokenizer, device="cpu"), tasks, tmp_path)
    assert ours["generation"] == theirs["generation"]
    for name in ("easy", "book", "lambada"):
        for mine, other in zip(ours[name], theirs[name], strict=True):
            assert [greedy for _, greedy in mine] == [greedy for _, greedy in other]
            assert [value for value, _ in mine] == pytest.approx([value for value, _ in other], abs=1e-4, rel=1e-6)
    for name in TASKS:
        ((mine,), (other,)) = ours[f"{name} results"], theirs[f"{name} results"]
        assert {key: value for key, value in mine.items() if not isinstance(value, str)} == pytest.approx(
            {key: value for key, value in other.items() if not isinstance(value, str)}, rel=1e-5
        )


def test_a_run_gives_metrics_and_every_documents_outcome(tasks: Path, tmp_path: Path) -> None:
    folder = SHARED / "TinyStories-656K"
    model, tokenizer = load(folder), hf_tokenizer.load(folder)
    options: dict[str, Any] = {"context_tokens": 512, "cache": tmp_path, "limit": 5, "tasks": [tasks]}
    found = harness.run(CausalLMRunner(model), tokenizer, list(TASKS), **options).answers
    assert {name: len(answers.outcomes) for name, answers in found.items()} == dict.fromkeys(TASKS, 5)
    for name in ("easy", "book", "lambada"):
        correct = [outcome.correct for outcome in found[name].outcomes]
        assert found[name].metrics["acc"].value == pytest.approx(sum(map(bool, correct)) / 5)
    documents = [json.loads(line) for line in (SHARED / "tasks/arc_easy.jsonl").read_text().splitlines()[:5]]
    for document, outcome in zip(documents, found["easy"].outcomes, strict=True):
        assert outcome.correct == (outcome.chosen == str(document["gold"]))
    assert {outcome.chosen for outcome in found["rolling"].outcomes} == {None}
    with pytest.raises(ValueError, match="lm-eval knows no task no_such_task"):
        harness.run(CausalLMRunner(model), tokenizer, ["no_such_task"], **options)
    short = harness.run(CausalLMRunner(model), tokenizer, ["generation", "book"], **options | {"context_tokens": 24})
    assert set(short.answers) == {"book"}
    assert "generates up to 24 tokens, and the checkpoint's context is 24" in short.impossible["generation"]
    broken = yaml.safe_load((tasks / "book.yaml").read_text())
    broken["dataset_kwargs"]["data_files"]["test"] = "absent.jsonl"
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(broken | {"task": "broken"}))
    with pytest.raises(ValueError, match=r"lm-eval cannot load the task broken \(FileNotFoundError: .*absent.jsonl"):
        harness.run(CausalLMRunner(model), tokenizer, ["broken"], **options | {"tasks": [tmp_path]})


RECIPES: dict[str, tuple[Backend, float]] = {
    "gguf": (Gguf(backend="gguf", quantization="F16", imatrix=False), 0.05),
    "onnx": (Onnx(backend="onnx", precision="fp32"), 1e-3),
}
"""With the largest difference of one continuation's log-likelihood, in nats."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the demo's cloze items."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    items = cloze.items(read.read("stdlib://evaluation").documents)[: 2 * DOCUMENTS]
    (tmp_path / "corpus/cloze.jsonl").write_text("".join(f"{item.model_dump_json()}\n" for item in items))
    return tmp_path


@pytest.mark.parametrize("backend", RECIPES)
def test_other_runtimes_answer_the_cloze_as_transformers_does(backend: str, repository: Path) -> None:
    recipe, tolerance = RECIPES[backend]
    if missing := recipe.requirements():
        pytest.skip(missing[0].what)
    artifact = repository / "artifacts" / backend
    artifact.mkdir(parents=True)
    recipe.build(DEMO, repository / "corpus", artifact, Compute(threads=2))
    reference = likelihoods(CausalLMRunner(load(DEMO)), repository)
    with recipe.open(artifact, Compute(threads=2)) as runner:
        found = likelihoods(runner, repository)
    assert found == pytest.approx(reference, abs=tolerance)
    assert len(found) == 4 * 2 * DOCUMENTS


def likelihoods(runner: Runner, repository: Path) -> list[float]:
    from lm_eval.tasks import TaskManager

    from evals.harness_model import RunnerLM

    with harness.quiet(repository / "cache"):
        manager = TaskManager(include_path=str(harness.TASKS), include_defaults=False)
        task = manager.load(["cloze"])["tasks"]["cloze"]
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests()
        return [value for value, _ in RunnerLM(runner, hf_tokenizer.load(DEMO), 1024).loglikelihood(task.instances)]
