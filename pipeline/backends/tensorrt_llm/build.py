"""Converting, quantizing and compiling, all of it where TensorRT-LLM is; here is what is asked for, and checked."""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.windows import Windows
from pipeline.backends.common import checks
from pipeline.backends.contract import Built
from pipeline.backends.tensorrt_llm import commands, place, source, support, tensors, written
from pipeline.backends.tensorrt_llm import target as targets
from pipeline.backends.tensorrt_llm.place import Place
from pipeline.backends.tensorrt_llm.recipe import TensorRtLlmRecipe
from pipeline.backends.tensorrt_llm.target import Target
from pipeline.errors import BuildError, NativeCrashError
from pipeline.toolchains import isolated

INSIDE = Path(__file__).parent / "inside"
"""Scripts of ours that run where TensorRT-LLM is."""

NOT_COPIED = ("*.index.json", "assay.json", "quantize_config.json")
"""Files of the source that are not copied: indices of weights, our own record, and what GPTQ was told."""

OUT_OF_GPU_MEMORY = re.compile(
    r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|cudaErrorMemoryAllocation|Cuda Runtime \(out of memory\)"
    r"|OutOfMemory \(Requested size was|CUDA_ERROR_OUT_OF_MEMORY|CUDA error: out of memory"
)
"""As torch, TensorRT and the CUDA driver say it."""

KILLED = re.compile(r"was killed by SIGKILL|tells of SIGKILL")
"""By the kernel: of a process here, and of one in a container."""


def build(recipe: TensorRtLlmRecipe, checkpoint: Path, corpus: Path, out: Path) -> Built:
    """Fill `out`; nothing is in it unless everything was made and is what was asked for."""
    windows = Windows.load(corpus / "calibration.npz")
    _require_room(recipe, windows)
    where = place.find()
    with tempfile.TemporaryDirectory(prefix=".tensorrt_llm-", dir=out.parent.resolve()) as folder:
        scratch = Path(folder)
        try:
            report = _convert(recipe, where, checkpoint, windows, scratch)
            made = _compiled(recipe, where, scratch) if recipe.mode == "engine" else scratch / "converted"
        except BuildError as error:
            raise _explained(recipe, error) from error
        target = Target(mode=recipe.mode, tensor_parallel=recipe.tensor_parallel, **report)
        _fill(recipe, checkpoint, made, out)
    target.save(out / targets.FILE)
    return Built(tools=_tools(target), notes=_notes(recipe))


def job(recipe: TensorRtLlmRecipe, checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Return what inside/convert.py is asked to do."""
    architecture = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    gptq = _stored_group_size(checkpoint) if recipe.quantization == "w4a16_gptq" else None
    calibrated = recipe.quantization in support.CALIBRATED or recipe.kv_cache != "auto"
    method = "quantize" if recipe.mode == "checkpoint" else "calibrate" if calibrated else "convert"
    return {
        "version": place.version(),
        "method": method,
        "model": str(scratch / "model"),
        "windows": str(scratch / "windows.npy"),
        "out": str(scratch / "converted"),
        "quantization": recipe.quantization,
        "algorithm": support.ALGORITHM[recipe.quantization],
        "kv_cache": None if recipe.kv_cache == "auto" else recipe.kv_cache,
        "group_size": gptq or recipe.group_size,
        "tensor_parallel": recipe.tensor_parallel,
        "environment": {"TRTLLM_DISABLE_UNIFIED_CONVERTER": "1"} if architecture in support.LEGACY_CONVERTER else {},
    }


def _require_room(recipe: TensorRtLlmRecipe, windows: Windows) -> None:
    """Find out now, and not when an engine of an hour's work is scored, that the corpus's windows do not fit it."""
    tokens = windows.ids.shape[1]
    if tokens > recipe.max_input_tokens or tokens >= recipe.max_sequence_tokens:
        raise BuildError(
            f"corpus.window_tokens is {tokens}, and this recipe takes prompts of {recipe.max_input_tokens} and "
            f"sequences of {recipe.max_sequence_tokens} tokens; raise max_input_tokens and max_sequence_tokens"
        )


def _convert(
    recipe: TensorRtLlmRecipe, where: Place, checkpoint: Path, windows: Windows, scratch: Path
) -> Mapping[str, Any]:
    """Convert and quantize on our own windows of ids; return what it says of GPU and versions."""
    tensors.save(scratch / "windows.npy", windows.ids)
    source.prepare(checkpoint, scratch / "model")
    what = f"TensorRT-LLM {recipe.quantization}"
    report = _call(where, "convert.py", job(recipe, checkpoint, scratch), scratch, what)
    made = scratch / "converted"
    if recipe.mode == "checkpoint":
        written.require_quantized(recipe, made)
    else:
        written.require_converted(recipe, made)
    damage = [problem for tensor in tensors.stored_tensors(recipe, made) for problem in checks.tensor_problems(tensor)]
    if damage:
        raise BuildError(f"{what} wrote damaged weights:\n" + "\n".join(f"  {one}" for one in damage))
    return report


def _call(where: Place, script: str, job: Mapping[str, Any], scratch: Path, what: str) -> dict[str, Any]:
    """Run one of our scripts on a job; return what it returns. BuildError with its last lines."""
    asked, result = scratch / f"{script}.job.json", scratch / f"{script}.result.json"
    asked.write_text(json.dumps(job), encoding="utf-8")
    words: list[str | Path] = ["python3", isolated.__file__, INSIDE / script, asked, result]
    readable = [*source.folders(scratch / "model"), INSIDE, Path(isolated.__file__).parent]
    place.run(where, words, what=what, readable=readable, writable=scratch)
    if not result.is_file():
        raise BuildError(f"{what} ended without an error and without a result")
    value: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return value


def _compiled(recipe: TensorRtLlmRecipe, where: Place, scratch: Path) -> Path:
    engine = scratch / commands.ENGINE
    command = commands.build(recipe, scratch / "converted", engine, scratch / "timings.cache")
    _call(where, "compile.py", {"command": command}, scratch, f"trtllm-build {recipe.quantization}")
    written.require_engine(recipe, engine, place.version())
    return engine


def _fill(recipe: TensorRtLlmRecipe, checkpoint: Path, made: Path, out: Path) -> None:
    """Move what was made into place, and put the source's own description and tokenizer beside it."""
    if recipe.mode == "engine":
        shutil.move(made, out / commands.ENGINE)
    else:
        for file in sorted(made.iterdir()):
            shutil.move(file, out / file.name)
    excluded = {file for pattern in NOT_COPIED for file in checkpoint.glob(pattern)}
    for file in sorted({file for pattern in source.OTHERS for file in checkpoint.glob(pattern)} - excluded):
        if file.name == "config.json" and (out / file.name).exists():
            continue  # ModelOpt's, which says how the weights are stored
        shutil.copyfile(file, out / file.name)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    if recipe.mode == "engine" and config.pop("quantization_config", None) is not None:
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / commands.SERVING).write_text(commands.serving(recipe), encoding="utf-8")


def _stored_group_size(checkpoint: Path) -> int:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return int(config["quantization_config"]["group_size"])


def _tools(target: Target) -> dict[str, str]:
    """An engine is bound to the GPU's architecture as it is to a version, so both are its identity."""
    gpu = {"gpu": target.gpu, "compute_capability": target.compute_capability, "driver": target.driver}
    return {"tensorrt_llm": target.tensorrt_llm, **target.tools, **gpu}


def _notes(recipe: TensorRtLlmRecipe) -> tuple[str, ...]:
    if recipe.mode == "checkpoint":
        return ()
    return (
        "its bytes differ from build to build: TensorRT times kernels on the GPU to choose among them",
        "prefill makes logits for every token of a prompt and not the last alone, so that the engine can be scored",
    )


def _explained(recipe: TensorRtLlmRecipe, error: BuildError) -> BuildError:
    """Add what would help to an error that is about memory."""
    if OUT_OF_GPU_MEMORY.search(str(error)):
        smaller = f"max_batch_size ({recipe.max_batch_size}), max_sequence_tokens ({recipe.max_sequence_tokens})"
        return BuildError(
            f"{error}\nthe GPU's memory is too small: lower {smaller} or max_input_tokens ({recipe.max_input_tokens}), "
            f"raise tensor_parallel ({recipe.tensor_parallel}), or end other programs on this GPU"
        )
    if KILLED.search(str(error)):
        return NativeCrashError(f"{error}\nthe system ended it, most often for want of main memory (see `dmesg`)")
    return error
