"""What GPTQ and AWQ share: both quantize with GPTQModel and keep the checkpoint's Hugging Face layout."""

import csv
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pipeline
from pipeline import architectures, interpreter, processes
from pipeline.backends.common import gptqmodel_child, stored
from pipeline.backends.common.gptqmodel_child import Job
from pipeline.backends.contract import Built, Missing
from pipeline.checkpoints.weights import Entry
from pipeline.compute import Compute
from pipeline.errors import BuildError
from pipeline.sizing.model import EXPERT_COUNTS

COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template*",
    "additional_chat_templates/*", "generation_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""Files that an artifact takes from the checkpoint byte for byte."""

META = ("quantizer", "uri", "damp_percent", "damp_auto_increment", "true_sequential", "act_group_aware", "fallback")
"""Keys of GPTQModel's `meta` that say how the weights came about; the others say how its process was run."""

QUANTIZED_LEAVES = ("qweight", "qzeros", "scales", "g_idx")
"""What stands in the place of a quantized layer's `weight`."""

PACKED_ROWS = 32
"""Quantized integers are stored 32 bits at a time, for every width in whole words only when 32 of them are together."""


def requirements(packages: tuple[str, ...]) -> list[Missing]:
    """List the missing ones of `packages`, whose modules have the same names. `_environment` says why no compiler."""
    return [
        Missing(what=f"the Python package {package}", remedy=interpreter.setup())
        for package in packages
        if importlib.util.find_spec(package) is None
    ]


def refusal(config: Mapping[str, Any], group_size: int, group_sizes: Sequence[int]) -> str | None:
    """Say what a config.json alone tells against quantizing with GPTQModel in groups of `group_size`.

    `group_sizes` are those that the recipe could have: the answer names the ones that would do.
    """
    model_type = config.get("model_type", "none")
    for part in ("vision_config", "audio_config"):
        if config.get(part) is not None:
            return f"{model_type} has a {part}; only text models are quantized"
    if key := next((key for key in EXPERT_COUNTS if config.get(key)), None):
        return (
            f"{model_type} is a mixture of experts ({key} in its config.json): transformers joins the experts of a "
            "layer into one tensor, and leaves it random where they are stored packed one by one"
        )
    if model_type not in architectures.tools().gptqmodel:
        return f"GPTQModel has no definition of the layers of {model_type}"
    widths = list(_widths(config))
    for key, width in widths:
        if width % _unit(group_size):
            fit = fitting([width for _, width in widths], group_sizes)
            return f"{key} is {width}, no multiple of the group size {group_size}; {fit}"
    return None


def _unit(group_size: int) -> int:
    """Return what a matrix's inputs must be a multiple of; a group size of -1 is a whole row, of any such length."""
    return group_size if group_size > 0 else PACKED_ROWS


def fitting(widths: Sequence[int], group_sizes: Sequence[int]) -> str:
    """Name the group sizes that divide all these widths, the largest first: it costs the fewest bits."""
    fit = [size for size in sorted(group_sizes, reverse=True) if all(width % _unit(size) == 0 for width in widths)]
    named = [str(size) if size > 0 else f"{size} (one scale a row)" for size in fit]
    if not named:
        return f"no group size of {', '.join(map(str, sorted(group_sizes)))} fits"
    return f"group_size {' or '.join(named)} would fit"


def _widths(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the input widths of the linear layers, as far as config.json names them."""
    for key in ("hidden_size", "intermediate_size", "moe_intermediate_size", "ffn_dim", "ffn_hidden_size"):
        if isinstance(config.get(key), int):
            yield key, config[key]
    if isinstance(config.get("head_dim"), int):
        yield "head_dim x num_attention_heads", config["head_dim"] * config["num_attention_heads"]


def build(
    *,
    method: str,
    bits: int,
    group_size: int,
    group_sizes: Sequence[int],
    checkpoint: Path,
    corpus: Path,
    out: Path,
    compute: Compute,
    **options: Any,
) -> Built:
    """Quantize into `out`. Raises BuildError for shapes that cannot be packed, and with GPTQModel's last lines."""
    tensors = list(stored.tensors(checkpoint))
    _check_shapes(tensors, group_size, group_sizes)
    source, dtype = _dtypes(tensors)
    job = Job.model_validate(
        {
            "method": method,
            "bits": bits,
            "group_size": group_size,
            "dtype": dtype,
            "checkpoint": str(checkpoint.resolve()),
            "windows": str((corpus / "calibration.npz").resolve()),
            "out": str(out.resolve()),
            "device": compute.device,
            **options,
        }
    )
    _run(job, f"{method.upper()} {bits}-bit")
    notes = _notes(job, out / "quant_log.csv")
    if source != dtype:
        notes = (
            f"tensors that are not quantized went from {source} to {dtype}: the format knows only 16-bit floats",
            *notes,
        )
    _finish(checkpoint, out, dtype)
    tools = {package: importlib.metadata.version(package) for package in ("gptqmodel", "torch", "transformers")}
    return Built(tools=tools, notes=notes)


def _check_shapes(tensors: list[Entry], group_size: int, group_sizes: Sequence[int]) -> None:
    """Refuse now what would fail, or give an artifact that few kernels load, after hours of work."""
    matrices = [tensor for tensor in tensors if stored.is_layer_matrix(tensor)]
    widths = sorted({tensor.shape[-1] for tensor in matrices})
    for tensor in matrices:
        outputs, inputs = tensor.shape[-2:]
        unit = _unit(group_size)
        if inputs % unit or outputs % PACKED_ROWS:
            helps = fitting(widths, group_sizes) if inputs % unit else "no group_size changes the number of outputs"
            raise BuildError(
                f"{tensor.name} has {outputs} outputs and {inputs} inputs; expected multiples of {PACKED_ROWS} and "
                f"{unit}. {helps[0].upper()}{helps[1:]}; change the recipe, or leave it out of params.yaml"
            )


def _dtypes(tensors: list[Entry]) -> tuple[str, str]:
    """Return the dtype of most weights, and the one to quantize from: the same, or bfloat16 with float32's range."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += tensor.parameters
    (most, _), *_ = counts.most_common(1)
    source = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}.get(most, most)
    return source, source if source in ("bfloat16", "float16") else "bfloat16"


def _environment() -> dict[str, str]:
    """Return the child's environment, with GPTQModel's switches.

    GPTQMODEL_DISABLE_PACK_EXT packs with torch instead of an extension that it would compile with g++ on first use for
    half a minute; packing is a small part of the work. GPTQMODEL_DISABLE_GPTQ_CUDA does without another one, which
    nvcc would compile where it is there: the same columns are rounded by torch. GPTQMODEL_CPU_WORKERS: its loader asks
    for two workers, and its own default on two cores is one, which fails.
    """
    ours = str(Path(pipeline.__path__[0]).resolve().parent)
    workers = max(2, min(12, len(os.sched_getaffinity(0)) // 2))
    return {
        **os.environ,
        "GPTQMODEL_DISABLE_PACK_EXT": "1",
        "GPTQMODEL_DISABLE_GPTQ_CUDA": "1",
        "GPTQMODEL_CPU_WORKERS": str(workers),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (ours, os.getenv("PYTHONPATH")))),
    }


def _run(job: Job, what: str) -> None:
    """Run the child to its end, showing how many layers are done.

    Its stdin stays open and empty: when this process dies, the child reads its end and stops. It works in a folder of
    its own, because GPTQModel leaves a folder `logs` wherever it runs.
    """
    command = [sys.executable, "-m", gptqmodel_child.__name__, job.model_dump_json()]
    with tempfile.TemporaryDirectory(prefix="assay-gptqmodel-") as work:
        processes.run(
            command,
            what=f"{what}: GPTQModel",
            env=_environment(),
            cwd=Path(work),
            stdin=subprocess.PIPE,
            progress=processes.count(rf"{gptqmodel_child.REPORT}(\d+) of (\d+)"),
        )


def _notes(job: Job, log: Path) -> tuple[str, ...]:
    """Read out of GPTQModel's log which matrices were not quantized as asked for."""
    with log.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    notes = []
    if rounded := [row for row in rows if "fallback" in row["loss"]]:
        notes.append(
            f"{len(rounded)} of {len(rows)} matrices saw too few calibration tokens and were rounded to nearest: "
            f"{_kinds(rounded)}"
        )
    if unscaled := [row for row in rows if row["loss"] == "not applicable"]:
        notes.append(
            f"{len(unscaled)} of {len(rows)} matrices were rounded without activation-aware scaling, as nothing before "
            f"them can take up the scales: {_kinds(unscaled)}"
        )
    if job.damping is not None:
        damped = [row for row in rows if row["damp"] and float(row["damp"]) > job.damping]
        if damped:
            notes.append(
                f"{len(damped)} of {len(rows)} matrices needed more damping than {job.damping}: {_kinds(damped)}"
            )
    return tuple(notes)


def _kinds(rows: list[dict[str, str]]) -> str:
    """Name the kinds of matrices, with expert numbers left out, in a fixed order: the log's own depends on threads."""
    return ", ".join(sorted({re.sub(r"\.\d+\.", ".*.", row["module"]) for row in rows}))


def _check_names(checkpoint: Path, out: Path) -> None:
    """Refuse weights under names that the checkpoint does not have: only GPTQModel itself would find them there."""
    known = {tensor.name for tensor in stored.tensors(checkpoint)}
    for tensor in stored.tensors(out):
        stem, _, leaf = tensor.name.rpartition(".")
        original = f"{stem}.weight" if leaf in QUANTIZED_LEAVES else tensor.name
        if original not in known:
            raise BuildError(
                f"GPTQModel wrote {tensor.name}, and the checkpoint has no {original}: "
                "other libraries would not find it. Leave this recipe out of params.yaml for this model family"
            )


def _finish(checkpoint: Path, out: Path, dtype: str) -> None:
    """Keep the weights GPTQModel wrote, and the checkpoint's own files beside them instead of re-written ones.

    GPTQModel and transformers rewrite config.json and the tokenizer on saving: keys are added, a padding token is made
    up, and `meta` names the machine's temporary folder.
    """
    settings = json.loads((out / "quantize_config.json").read_text(encoding="utf-8"))
    settings["meta"] = {key: value for key, value in settings["meta"].items() if key in META}
    _check_names(checkpoint, out)
    for path in list(out.iterdir()):
        if not path.name.startswith("model"):
            path.unlink()
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    config["quantization_config"] = settings
    for name, value in (("config.json", config), ("quantize_config.json", settings)):
        (out / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    for pattern in COMPANIONS:
        for path in sorted(checkpoint.glob(pattern)):
            if path.is_file():
                target = out / path.relative_to(checkpoint)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
