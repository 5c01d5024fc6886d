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
    """Documents per second over those of `hf` at the better of two batch sizes; float32, after a warm-up of each."""
    from lm_eval.models.huggingface import HFLM

    from evals.harness_model import RunnerLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    folder, requests = _requests(scratch)
    model = cast(Any, AutoModelForCausalLM).from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer = hf_tokenizer.load(folder)
    head = model.get_output_embeddings()
    models: dict[str, Any] = {"ours": RunnerLM(CausalLMRunner(model), tokenizer, model.config.max_position_embeddings)}
    models |= {f"hf {n}": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=n, device="cpu") for n in BATCHES}
    rates = {}
    for name, lm in models.items():
        model.set_output_embeddings(head)  # our scoring head stays in the model, and `hf` must not pay for it
        _answer(lm, requests[:40])
        took = min(_answer(lm, requests) for _ in range(ROUNDS))
        rates[name] = len({request.doc_id for request in requests}) / took
    theirs = max(rate for name, rate in rates.items() if name != "ours")
    text = f"{rates['ours']:.0f} / {theirs:.0f} documents/s = "
    return [
        row(f"multiple choice, ours / lm-eval's hf, {folder.name}", rates["ours"] / theirs, at_least=LEAST, prefix=text)
    ]


def _answer(lm: Any, requests: list[Any]) -> float:
    return seconds(lambda: lm.loglikelihood(requests, disable_tqdm=True))


def _requests(scratch: Path) -> tuple[Path, list[Any]]:
    """Build a task's requests once: arc_easy for a third-party checkpoint where they are there, else the cloze."""
    from lm_eval.tasks import TaskManager

    tasks, folder, name = scratch / "tasks", ROOT / "models/demo", "cloze"
    tasks.mkdir()
    task = yaml.safe_load((harness.TASKS / "cloze.yaml").read_text())
    data = scratch / "cloze.jsonl"
    data.write_text(
        "".join(f"{item.model_dump_json()}\n" for item in cloze.items(read.read("stdlib://evaluation").documents))
    )
    if SHARED.is_dir():
        folder, name, data = SHARED / "TinyStories-656K", "arc_easy", SHARED / "tasks/arc_easy.jsonl"
        task |= {"doc_to_text": "{{query}}\nAnswer:", "doc_to_target": "gold"}
    task |= {"task": name, "dataset_kwargs": {"data_files": {"test": str(data)}}}
    (tasks / f"{name}.yaml").write_text(yaml.safe_dump(task))
    with harness._quiet(scratch / "cache"):
        loaded = TaskManager(include_path=str(tasks), include_defaults=False).load([name])["tasks"][name]
        loaded.build_all_requests(limit=DOCUMENTS)
    return folder, list(loaded.instances)
