"""Multiple choice with prompts that choices share, against lm-eval's own `hf` model: same model, same requests."""

import os
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from transformers import AutoModelForCausalLM

from evals import harness
from pipeline.backends.common import hf_tokenizer
from pipeline.backends.common.causal_lm import CausalLMRunner
from pipeline.texts import cloze, read
from tests.bench.workspace import Row, row, seconds

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
DOCUMENTS = 200
BATCHES = (1, 8)
LEAST = 2.0
ROUNDS = 3


def tasks(scratch: Path) -> list[Row]:
    """Documents per second over those of `hf`.

    `hf` shares a prompt between choices of a single token, as the demo's cloze has them, and runs it again for each of
    the others; the limit is for those. Their task and a third-party model are used where they are there.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    demo = ROOT / "models/demo"
    rows = [_compare(demo, "cloze", _requests(scratch / "cloze", "cloze", None), None)]
    if SHARED.is_dir():
        requests = _requests(scratch / "arc_easy", "arc_easy", SHARED / "tasks/arc_easy.jsonl")
        rows += [_compare(folder, "arc_easy", requests, LEAST) for folder in (demo, SHARED / "TinyStories-656K")]
    return rows


def _compare(folder: Path, name: str, requests: list[Any], least: float | None) -> Row:
    """Take `hf` at the better of two batch sizes; float32, after a warm-up of each, in turns."""
    from lm_eval.models.huggingface import HFLM

    from evals.harness_model import RunnerLM

    model = cast(Any, AutoModelForCausalLM).from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer = hf_tokenizer.load(folder)
    head = model.get_output_embeddings()
    models: dict[str, Any] = {"ours": RunnerLM(CausalLMRunner(model), tokenizer, model.config.max_position_embeddings)}
    models |= {f"hf {n}": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=n, device="cpu") for n in BATCHES}
    took = dict.fromkeys(models, float("inf"))
    for _ in range(ROUNDS):
        for kind, lm in models.items():
            model.set_output_embeddings(head)  # our scoring head stays in the model, and `hf` must not pay for it
            _answer(lm, requests[:40])
            took[kind] = min(took[kind], _answer(lm, requests))
    rates = {kind: DOCUMENTS / seconds_ for kind, seconds_ in took.items()}
    theirs = max(rate for kind, rate in rates.items() if kind != "ours")
    text = f"{rates['ours']:.0f} / {theirs:.0f} documents/s = "
    what = f"multiple choice, ours / lm-eval's hf, {folder.name}, {name}"
    return row(what, rates["ours"] / theirs, at_least=least, prefix=text)


def _answer(lm: Any, requests: list[Any]) -> float:
    return seconds(lambda: lm.loglikelihood(requests, disable_tqdm=True))


def _requests(scratch: Path, name: str, data: Path | None) -> list[Any]:
    """Build a task's requests once."""
    from lm_eval.tasks import TaskManager

    tasks = scratch / "tasks"
    tasks.mkdir(parents=True)
    task = yaml.safe_load((harness.TASKS / "cloze.yaml").read_text())
    if data is None:
        items = cloze.items(read.read("stdlib://evaluation").documents)
        data = scratch / "cloze.jsonl"
        data.write_text("".join(f"{item.model_dump_json()}\n" for item in items))
    else:
        task |= {"doc_to_text": "{{query}}\nAnswer:", "doc_to_target": "gold"}
    task |= {"task": name, "dataset_kwargs": {"data_files": {"test": str(data)}}}
    (tasks / f"{name}.yaml").write_text(yaml.safe_dump(task))
    with harness.quiet(scratch / "cache"):
        loaded = TaskManager(include_path=str(tasks), include_defaults=False).load([name])["tasks"][name]
        loaded.build_all_requests(limit=DOCUMENTS)
    return list(loaded.instances)
