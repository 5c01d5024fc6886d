"""The reference, scoring and quantizing, on the GPU and beside it on the CPU."""

import gc
import math
import os
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from evals import gpu_memory
from evals.perplexity import Nll
from evals.runner import Ids
from evals.scoring import score
from evals.windows import Windows
from pipeline import params, paths
from pipeline.records import FILE, Build, Checkpoint, Quality, Reference
from tests.bench.workspace import seconds
from tests.gpu import spaces
from tests.gpu.items import Work
from tests.gpu.spaces import Space

PUBLISHED = "published for Llama 3 8B on one A100: 745 s"
PLAIN = {"random", "smollm2"}
"""Spaces small enough to be loaded once more for a plain loop."""


def reference(work: Work, space: Space) -> None:
    """Make the reference on the GPU; set the speed of its scoring beside a plain transformers loop's."""
    spaces.write_params(work, space)
    windows = Windows.load(paths.CORPUS / "evaluation.npz")
    bare = _bare(windows) if space.name in PLAIN else None
    _free()
    with gpu_memory.watch(spaces.on_gpu()) as peak:
        took = seconds(lambda: spaces.stage("reference"))
    record = Reference.load(paths.REFERENCE / FILE)
    work.about.setdefault("device", record.settings["device"])
    work.add("reference, whole stage", took, "s", gpu_bytes=peak.bytes, note=record.settings["device"])
    work.add("reference, perplexity", record.perplexity.perplexity.value, "")
    if bare is None:
        return
    rate, nll = bare
    work.add("a plain transformers loop", rate, "tokens/s")
    ours = _ours(windows)
    work.add("scoring the reference", ours, "tokens/s", note=f"{ours / rate:.2f} of the plain loop")
    ratio = math.exp(float(np.mean(nll)) - record.perplexity.nll.value)
    work.add("a plain loop's perplexity / the reference's", ratio, "")


def cpu(work: Work, space: Space) -> None:
    """Make the reference on the CPU, of the same ids, in a folder beside."""
    spaces.beside()
    spaces.write_params(work, space, "cpu")
    took = seconds(lambda: spaces.stage("reference"))
    record = Reference.load(paths.REFERENCE / FILE)
    threads = record.settings["threads"]
    work.add("reference on the CPU, whole stage", took, "s", note=f"{threads} threads")
    work.add("reference on the CPU, perplexity", record.perplexity.perplexity.value, "")


def floor(work: Work, space: Space) -> None:
    """Score the unquantized weights on the GPU against the CPU's reference: what two devices differ by."""
    os.chdir(spaces.CPU)
    spaces.write_params(work, space)
    spaces.stage("artifact", "bf16")
    _scored(work, "bf16", "unquantized, against the CPU's reference")


def gptq(work: Work, space: Space) -> None:
    """Quantize with GPTQ and score it."""
    _built_and_scored(work, "gptq-int4", note=PUBLISHED if space.name == "seven" else "")


def awq(work: Work, space: Space) -> None:
    """Quantize with AWQ and score it."""
    _built_and_scored(work, "awq-int4")


def gguf(work: Work, space: Space) -> None:
    """Convert, quantize with an importance matrix and score; F16 as the runtime's floor."""
    for name in ("gguf-f16", "gguf-q4_k_m"):
        _built_and_scored(work, name)


def _built_and_scored(work: Work, name: str, note: str = "") -> None:
    spaces.stage("artifact", name)
    build = Build.load(paths.build(name))
    if build.seconds is None:
        raise SystemExit(f"{name} was not built: {(paths.artifact(name) / FILE).read_text(encoding='utf-8')}")
    notes = "; ".join(filter(None, (build.device, note, *build.notes)))
    work.add(f"{name}, built", build.seconds, "s", gpu_bytes=build.peak_gpu_bytes, note=notes)
    _scored(work, name, name)


def _scored(work: Work, name: str, what: str) -> None:
    took = seconds(lambda: spaces.stage("quality", name))
    found = Quality.load(paths.quality(name))
    if found.perplexity_ratio is None or found.divergence is None:
        raise SystemExit(f"{name} was not scored: {found.unavailable}")
    repeats = "repeats to the bit" if found.repeats_to_the_bit else "does not repeat to the bit"
    work.add(f"{what}, scored", took, "s", gpu_bytes=found.peak_gpu_bytes, note=repeats)
    interval = f"[{found.perplexity_ratio.low:.4f}, {found.perplexity_ratio.high:.4f}]" if _sure(found) else ""
    work.add(f"{what}, perplexity ratio", found.perplexity_ratio.value, "", note=interval)
    work.add(f"{what}, KLD", found.divergence.mean.value, "nats", note=f"at most {found.divergence.maximum:.3g}")
    work.add(f"{what}, top-1 agreement", 100 * found.divergence.top1_agreement.value, "%")


def _sure(found: Quality) -> bool:
    return found.perplexity_ratio is not None and found.perplexity_ratio.low is not None


def _bare(windows: Windows) -> tuple[float, Nll]:
    """Score with transformers alone, window by window, as a user would write it; return tokens/s and NLL."""
    import torch
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(paths.CHECKPOINT, dtype=torch.bfloat16, local_files_only=True)
    model = model.to("cuda" if spaces.on_gpu() else "cpu")
    _plain_loop(model, windows.ids[:1])
    began = perf_counter()
    nll = _plain_loop(model, windows.ids)
    return windows.ids.size / (perf_counter() - began), nll


def _plain_loop(model: Any, windows: Ids) -> Nll:
    import torch

    rows = []
    with torch.inference_mode():
        for window in windows:
            ids = torch.from_numpy(window.astype(np.int64))[None].to(model.device)
            logits = model(ids).logits[0, :-1].float()
            rows.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").cpu().numpy())
    nll: Nll = np.array(rows)
    return nll


def _free() -> None:
    """Give back what a model took that is no longer needed."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ours(windows: Windows) -> float:
    from pipeline.backends.common import causal_lm

    dtype = Checkpoint.load(paths.CHECKPOINT / FILE).dtype
    runner = causal_lm.load(Path(paths.CHECKPOINT), dtype, params.load().compute())
    score(runner, windows.first(1))
    return windows.ids.size / seconds(lambda: score(runner, windows))
