"""Stands in for podman, for NVIDIA's image, and for what is called inside it, as their documentation has them.

Our own scripts are run as they are; the packages that they import are replaced. STANDIN_FAULT says what goes wrong:
version, oom, killed, fails, unquantized, engine-unquantized, clamped, nan, dies, reuse. No torch: tests stay quick.
"""

import importlib.metadata
import json
import os
import runpy
import signal
import sys
import types
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.checkpoints import numbers, safetensors

FAULT = os.environ.get("STANDIN_FAULT", "")
SEEN = os.environ.get("STANDIN_SEEN")
"""Where calibration's rows are noted."""

VERSION = "1.1.0" if FAULT == "version" else "1.2.1"
VERSIONS = {"tensorrt": "10.13.3.9", "nvidia-modelopt": "0.37.0", "torch": "2.9.1", "transformers": "4.57.3"}
BITS = {None: 16, "FP8": 8, "W8A16": 8, "W4A16": 4, "W4A16_AWQ": 4, "W4A16_GPTQ": 4}
GREETING = "== TensorRT-LLM Release ==\n{not ours}"
PADDING = 3
"""Columns that an engine has beyond the vocabulary, as those for several GPUs do."""


class Array(np.ndarray[Any, Any]):
    """As much of a tensor as is used."""

    def float(self) -> "Array":
        return self.astype(np.float32).view(Array)

    def long(self) -> "Array":
        return self.astype(np.int64).view(Array)

    def cpu(self) -> "Array":
        return self

    def contiguous(self) -> "Array":
        return np.ascontiguousarray(self).view(Array)

    def numpy(self) -> Any:
        return np.asarray(self)


class QuantAlgo(StrEnum):
    FP8 = "FP8"
    INT8 = "INT8"
    W8A16 = "W8A16"
    W4A16 = "W4A16"
    W4A16_AWQ = "W4A16_AWQ"
    W4A16_GPTQ = "W4A16_GPTQ"


def write_converted(model: str, out: str, quantization: dict[str, Any], size: int, rank: int) -> None:
    """Write one rank's file, and config.json with the first."""
    hf = json.loads((Path(model) / "config.json").read_text())
    if "rope_theta" not in hf or "torch_dtype" not in hf:
        raise ValueError("transformers 4.57 reads rope_theta and torch_dtype")
    grouped = quantization.get("quant_algo") == "W4A16_GPTQ"
    weight = numbers("BF16", 8, 16)
    if grouped:  # packed integers, some of which are NaN when they are taken for what they are declared as
        weight = ("BF16", (8, 16), b"\xff\x7f" * 127 + b"\x01\x02")
    norm = numbers("BF16", 16)
    if FAULT == "nan":
        norm = ("BF16", (16,), b"\xff\x7f" * 16)
    tensors = {"transformer.layers.0.attention.qkv.weight": weight, "transformer.ln_f.weight": norm}
    (Path(out) / f"rank{rank}.safetensors").write_bytes(safetensors(tensors))
    if FAULT == "unquantized":
        quantization = quantization | {"quant_algo": None}
    mapping = {"world_size": size, "tp_size": size, "pp_size": 1}
    config = {
        "architecture": hf["architectures"][0],
        "dtype": "bfloat16",
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "group_size": 128} | quantization,
        "mapping": mapping,
        "model": model,
    }
    if rank == 0:
        (Path(out) / "config.json").write_text(json.dumps(config))


def stored_bytes(model: Path, algorithm: str | None) -> int:
    """What an engine takes: layers' matrices at their bits, everything else as it is."""
    total = 0
    for path in model.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                size = entry["data_offsets"][1] - entry["data_offsets"][0]
                quantized = ".layers." in name and len(entry["shape"]) == 2
                total += size * BITS[algorithm] // 16 if quantized else size
    return total


def trtllm_build(words: list[str]) -> None:
    """Compile, so to speak."""
    names, values = words[0::2], words[1::2]
    words.remove("--gather_context_logits")
    names, values = words[0::2], words[1::2]
    given = dict(zip(names, values, strict=True))
    print("[TRT-LLM] [I] Building engine")
    if FAULT == "fails":
        print("[TRT-LLM] [E] Internal Error: could not find any implementation for node {ForeignNode}")
        sys.exit(1)
    if FAULT == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT == "oom":
        print("[TRT] [E] [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)")
        sys.exit(1)
    config = json.loads((Path(given["--checkpoint_dir"]) / "config.json").read_text())
    model = Path(config.pop("model"))
    out = Path(given["--output_dir"])
    out.mkdir()
    algorithm = config["quantization"]["quant_algo"]
    size = stored_bytes(model, algorithm) // config["mapping"]["world_size"]
    for rank in range(config["mapping"]["world_size"]):
        (out / f"rank{rank}.engine").write_bytes(np.random.default_rng(rank).bytes(size))
    if FAULT == "engine-unquantized":
        config["quantization"]["quant_algo"] = None
    built = {
        "max_batch_size": int(given["--max_batch_size"]) // (2 if FAULT == "clamped" else 1),
        "max_input_len": int(given["--max_input_len"]),
        "max_seq_len": int(given["--max_seq_len"]),
        "max_num_tokens": int(given["--max_num_tokens"]),
        "gather_context_logits": True,
        "kv_cache_type": given["--kv_cache_type"].upper(),
    }
    whole = {"version": VERSION, "pretrained_config": config, "build_config": built}
    (out / "config.json").write_text(json.dumps(whole))
    Path(given["--output_timing_cache"]).write_bytes(b"timings")


class Record:
    """Keyword arguments as attributes; others than those named are refused."""

    fields: tuple[str, ...] = ()

    def __init__(self, **given: Any) -> None:
        if unknown := set(given) - set(self.fields):
            raise TypeError(f"{type(self).__name__} has no {unknown}")
        self.given = given


class QuantConfig(Record):
    fields = ("quant_algo", "kv_cache_quant_algo", "group_size", "has_zero_point", "pre_quant_scale")


class Mapping(Record):
    fields = ("world_size", "rank", "tp_size", "pp_size")


class KvCacheConfig(Record):
    fields = ("enable_block_reuse", "dtype", "free_gpu_memory_fraction")


class SamplingParams(Record):
    fields = ("max_tokens", "end_id", "pad_id", "top_k", "ignore_eos", "detokenize", "return_context_logits")


class Converted:
    """What from_hugging_face returns."""

    def __init__(self, model: str, mapping: Mapping, config: QuantConfig) -> None:
        self.model, self.mapping, self.config = model, mapping.given, config.given

    def save_checkpoint(self, out: str, save_config: bool = True) -> None:
        if self.config.get("quant_algo") == "W4A16_GPTQ" and not self.config.get("has_zero_point"):
            raise RuntimeError("a tensor named zero has no place")
        write_converted(self.model, out, self.config, self.mapping["world_size"], self.mapping["rank"])


class AutoModelForCausalLM:
    @staticmethod
    def from_hugging_face(model: str, dtype: str, mapping: Mapping, quant_config: QuantConfig) -> Converted:
        if FAULT == "oom":
            raise MemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB")
        assert dtype == "bfloat16"
        return Converted(model, mapping, quant_config)


FORMATS = {"full_prec": None, "fp8": "FP8", "int8_wo": "W8A16", "int4_wo": "W4A16", "int4_awq": "W4A16_AWQ"}


def quantize_and_export(
    *, model_dir: str, device: str, calib_dataset: str, dtype: str, qformat: str, kv_cache_dtype: str | None,
    calib_size: int, batch_size: int, calib_max_seq_length: int, awq_block_size: int, output_dir: str, tp_size: int,
    pp_size: int, cp_size: int, seed: int, tokenizer_max_seq_length: int,
) -> None:  # fmt: skip
    """Calibrate on whatever the module's own loader gives."""
    module = sys.modules["tensorrt_llm.quantization.quantize_by_modelopt"]
    tokenizer = module.get_tokenizer(model_dir, max_seq_length=tokenizer_max_seq_length, model_type="llama")
    loader = module.get_calib_dataloader(
        dataset_name_or_dir=calib_dataset, tokenizer=tokenizer, batch_size=batch_size, calib_size=32,
        block_size=calib_max_seq_length, device=device, include_labels=False,
    )  # fmt: skip
    note([row["input_ids"] for row in loader])
    quantization: dict[str, Any] = {
        "quant_algo": FORMATS[qformat],
        "kv_cache_quant_algo": kv_cache_dtype and kv_cache_dtype.upper(),
    }
    if qformat == "int4_awq":
        quantization["group_size"] = awq_block_size
    for rank in range(tp_size):
        write_converted(model_dir, output_dir, quantization, tp_size, rank)


def note(rows: list[Any]) -> None:
    if SEEN:
        np.save(SEEN, np.concatenate([np.asarray(row) for row in rows]))


def downloads(*_: Any, **__: Any) -> Any:
    raise ConnectionError("cnn_dailymail cannot be reached")


class HfModel:
    """A model of transformers, fed for calibration."""

    device = "cuda"

    def __init__(self, model: str) -> None:
        self.model, self.rows, self.quantization = model, list[Any](), dict[str, Any]()

    @classmethod
    def from_pretrained(cls, model: str, **_: Any) -> "HfModel":
        return cls(model)

    def eval(self) -> "HfModel":
        return self

    def __call__(self, input_ids: Any) -> None:
        self.rows.append(input_ids)


def mtq_quantize(model: HfModel, config: dict[str, Any], forward_loop: Any) -> None:
    forward_loop(model)
    note(model.rows)
    weights = config["quant_cfg"]["*weight_quantizer"]
    blocks = weights.get("block_sizes")
    model.quantization = {
        "quant_algo": "W4A16_AWQ" if blocks else "FP8",
        "kv_cache_quant_algo": "FP8" if "*[kv]_bmm_quantizer" in config["quant_cfg"] else None,
        "group_size": blocks[-1] if blocks else None,
    }


def export_hf_checkpoint(model: HfModel, dtype: Any, export_dir: str) -> None:
    out, source = Path(export_dir), Path(model.model)
    quantization = dict(model.quantization)
    size = stored_bytes(source, quantization["quant_algo"])
    if FAULT == "unquantized":
        quantization["quant_algo"] = None
    layer = ("U8", (2, size // 2), np.random.default_rng(0).bytes(size // 2 * 2))
    (out / "model.safetensors").write_bytes(safetensors({"model.layers.0.mlp.up_proj.weight": layer}))
    (out / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "modelopt"}}))


class Output:
    """What generate and generate_async give."""

    def __init__(self, ids: list[int], context_logits: Any = None) -> None:
        self.context_logits = context_logits
        self.outputs = [types.SimpleNamespace(token_ids=ids)]


class Llm:
    """Logits that depend on all ids before, and nothing of a real model."""

    def __init__(self, model: str, skip_tokenizer_init: bool, kv_cache_config: KvCacheConfig, **_: Any) -> None:
        folder = Path(model)
        described = folder.parent if folder.name == "engine" else folder
        self.columns = json.loads((described / "config.json").read_text())["vocab_size"] + PADDING
        self.reuse = kv_cache_config.given.get("enable_block_reuse", True) or FAULT == "reuse"
        self.known: list[list[int]] = []
        if FAULT == "dies":
            print("[TensorRT-LLM][ERROR] Assertion failed: Version tag does not match", file=sys.stderr)
            sys.exit(1)

    def generate(self, inputs: list[list[int]], sampling_params: SamplingParams, use_tqdm: bool) -> list[Output]:
        assert sampling_params.given["return_context_logits"]
        print("[TRT-LLM] a line on stdout")
        return [self._score(ids) for ids in inputs]

    def generate_async(self, inputs: list[int], sampling_params: SamplingParams, streaming: bool) -> Iterator[Output]:
        assert streaming
        assert sampling_params.given["top_k"] == 1
        assert sampling_params.given["ignore_eos"]
        made: list[int] = []
        for _ in range(sampling_params.given["max_tokens"]):
            made.append(int(np.argmax(logits([*inputs, *made], self.columns)[-1])))
            yield Output(list(made))

    def _score(self, ids: list[int]) -> Output:
        rows = logits(ids, self.columns)
        if self.reuse and ids in self.known:
            rows = rows[-1:]
        self.known.append(ids)
        return Output([], rows.view(Array))


def logits(ids: list[int], columns: int) -> Any:
    """Rows [tokens, columns]: the likeliest token follows from the last two and the place."""
    rows = np.zeros((len(ids), columns), np.float64)
    for place, (id_, before) in enumerate(zip(ids, [0, *ids], strict=False)):
        rows[place] = np.cos(np.arange(columns) * (1 + place) + before)
        rows[place, (7 * id_ + 3 * before + place) % (columns - PADDING)] = 5
    return rows


class Torch(types.ModuleType):
    """As much of torch as the scripts use."""

    bfloat16 = "bfloat16"

    class cuda:  # noqa: N801
        @staticmethod
        def get_device_name(_: int) -> str:
            return "NVIDIA H100 80GB HBM3"

        @staticmethod
        def get_device_capability(_: int) -> tuple[int, int]:
            return 9, 0

    class no_grad:  # noqa: N801
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    inference_mode = no_grad

    @staticmethod
    def tensor(values: Any, device: str) -> Array:
        assert device == "cuda"
        return np.asarray(values).view(Array)


def module(name: str, **content: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__path__ = []
    vars(made).update(content)
    sys.modules[name] = made
    return made


def install() -> None:
    """Put the packages where `import` finds them."""
    sys.modules["torch"] = Torch("torch")
    module("tensorrt_llm", __version__=VERSION, LLM=Llm, SamplingParams=SamplingParams)
    module("tensorrt_llm._tensorrt_engine", LLM=Llm)
    module("tensorrt_llm._utils", release_gc=lambda: None)
    module("tensorrt_llm.llmapi", KvCacheConfig=KvCacheConfig)
    module("tensorrt_llm.mapping", Mapping=Mapping)
    module("tensorrt_llm.models")
    module("tensorrt_llm.models.automodel", AutoModelForCausalLM=AutoModelForCausalLM)
    module("tensorrt_llm.models.modeling_utils", QuantConfig=QuantConfig)
    by_modelopt = module(
        "tensorrt_llm.quantization.quantize_by_modelopt",
        get_calib_dataloader=downloads, get_tokenizer=downloads, quantize_and_export=quantize_and_export,
    )  # fmt: skip
    module("tensorrt_llm.quantization", quantize_by_modelopt=by_modelopt)
    module("tensorrt_llm.quantization.mode", QuantAlgo=QuantAlgo)
    plain = {"quant_cfg": {"*weight_quantizer": {"num_bits": (4, 3)}}}
    blocks = {"quant_cfg": {"*weight_quantizer": {"num_bits": 4, "block_sizes": {-1: 128}}}}
    cache = {"quant_cfg": {"*[kv]_bmm_quantizer": {"num_bits": (4, 3)}}}
    mtq = {"FP8_DEFAULT_CFG": plain, "INT4_AWQ_CFG": blocks, "FP8_KV_CFG": cache, "quantize": mtq_quantize}
    quantization = module("modelopt.torch.quantization", **mtq)
    module("modelopt.torch.export", export_hf_checkpoint=export_hf_checkpoint)
    inner = module("modelopt.torch", quantization=quantization)
    module("modelopt", torch=inner)
    module("transformers", AutoModelForCausalLM=HfModel)
    module("pynvml", nvmlInit=lambda: None, nvmlSystemGetDriverVersion=lambda: "580.65.06")
    installed = importlib.metadata.version
    importlib.metadata.version = lambda name: VERSIONS.get(name) or installed(name)  # type: ignore[assignment]


def main(arguments: list[str]) -> None:
    """Do as `podman run` does with an image, or as trtllm-build; anything else is done at once."""
    if arguments[:1] == ["trtllm-build"]:
        trtllm_build(arguments[1:])
        return
    if "run" not in arguments:
        return
    at = next(place for place, word in enumerate(arguments) if word.startswith("nvcr.io/"))
    flags, words = arguments[:at], arguments[at + 1 :]
    volumes = [flags[place + 1].split(":")[0] for place, flag in enumerate(flags) if flag == "--volume"]
    reached = [word for word in words if word.startswith("/")]
    job = json.loads(Path(next(word for word in words if word.endswith("job.json"))).read_text())
    if "model" in job:
        reached += [job["model"], *(str(file.resolve()) for file in Path(job["model"]).iterdir())]
    reached += [word for word in job.get("command", ()) if word.startswith("/")]
    for path in reached:
        if not any(Path(path).is_relative_to(volume) for volume in volumes):
            raise FileNotFoundError(f"{path} is not mounted: {volumes}")
    print(GREETING, flush=True)
    install()
    if "command" in job:  # the image's own commands
        tools = Path(os.environ["STANDIN_TOOLS"])
        (tools / "trtllm-build").write_text(f'#!/bin/sh\nexec {sys.executable} -B {__file__} trtllm-build "$@"\n')
        (tools / "trtllm-build").chmod(0o755)
        os.environ["PATH"] = f"{tools}:{os.environ['PATH']}"
    sys.argv = words[1:]
    sys.path[0] = str(Path(words[1]).parent)
    runpy.run_path(words[1], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
