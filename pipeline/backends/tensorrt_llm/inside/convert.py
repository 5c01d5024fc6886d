"""Converts and quantizes where TensorRT-LLM is installed: `run(job)`, JSON in and JSON out.

Nothing of this repository can be imported there. Calibration takes the job's windows of token ids: TensorRT-LLM's own
loader would download a data set, or tokenize text anew.
"""

import copy
import os
from importlib import metadata
from typing import Any

import numpy as np

TOOLS = ("tensorrt", "nvidia-modelopt", "torch", "transformers")
CONFIGS = {"fp8": "FP8_DEFAULT_CFG", "int4_awq": "INT4_AWQ_CFG"}
FORMATS = {"bf16": "full_prec"}
"""TensorRT-LLM's names of formats, where they are not ours."""


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do as the job says; return what GPU and which versions it was done with."""
    os.environ.update(job["environment"])
    import tensorrt_llm

    if tensorrt_llm.__version__ != job["version"]:
        raise RuntimeError(f"this is TensorRT-LLM {tensorrt_llm.__version__}, and {job['version']} is asked for")
    os.makedirs(job["out"], exist_ok=True)  # noqa: PTH103
    {"convert": convert, "calibrate": calibrate, "quantize": quantize}[job["method"]](job)
    return report(tensorrt_llm.__version__)


def convert(job: dict[str, Any]) -> None:
    """Write a TensorRT-LLM checkpoint without calibration, one file for each GPU."""
    from tensorrt_llm._utils import release_gc
    from tensorrt_llm.mapping import Mapping
    from tensorrt_llm.models.automodel import AutoModelForCausalLM
    from tensorrt_llm.models.modeling_utils import QuantConfig
    from tensorrt_llm.quantization.mode import QuantAlgo

    config = QuantConfig()
    if job["algorithm"] is not None:
        config = QuantConfig(quant_algo=QuantAlgo(job["algorithm"]))
    if job["quantization"] == "w4a16_gptq":
        # Converted GPTQ weights always come with zero points, symmetric ones, too; a layer without would drop them.
        config = QuantConfig(
            quant_algo=QuantAlgo.W4A16_GPTQ, group_size=job["group_size"], has_zero_point=True, pre_quant_scale=False
        )
    size = job["tensor_parallel"]
    for rank in range(size):
        model = AutoModelForCausalLM.from_hugging_face(
            job["model"],
            "bfloat16",
            mapping=Mapping(world_size=size, rank=rank, tp_size=size, pp_size=1),
            quant_config=copy.deepcopy(config),
        )
        model.save_checkpoint(job["out"], save_config=rank == 0)
        del model
        release_gc()


def calibrate(job: dict[str, Any]) -> None:
    """Quantize with ModelOpt as TensorRT-LLM does it, and write a TensorRT-LLM checkpoint."""
    import torch
    from tensorrt_llm.quantization import quantize_by_modelopt

    windows = np.load(job["windows"], allow_pickle=False)
    for name in ("get_calib_dataloader", "get_tokenizer"):
        if not hasattr(quantize_by_modelopt, name):
            raise RuntimeError(
                f"quantize_by_modelopt has no {name}: it takes calibration data in another way than ours"
            )

    def ours(**wanted: Any) -> list[dict[str, Any]]:
        return [{"input_ids": torch.tensor(row, device=wanted["device"])[None].long()} for row in windows]

    quantize_by_modelopt.get_calib_dataloader = ours
    quantize_by_modelopt.get_tokenizer = lambda *_, **__: None  # for text, of which there is none
    quantize_by_modelopt.quantize_and_export(
        model_dir=job["model"],
        device="cuda",
        calib_dataset="windows",
        dtype="bfloat16",
        qformat=FORMATS.get(job["quantization"], job["quantization"]),
        kv_cache_dtype=job["kv_cache"],
        calib_size=len(windows),
        batch_size=1,
        calib_max_seq_length=windows.shape[1],
        awq_block_size=job["group_size"],
        output_dir=job["out"],
        tp_size=job["tensor_parallel"],
        pp_size=1,
        cp_size=1,
        seed=0,
        tokenizer_max_seq_length=windows.shape[1],
    )


def quantize(job: dict[str, Any]) -> None:
    """Quantize with ModelOpt, and write a checkpoint in Hugging Face's layout."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    windows = np.load(job["windows"], allow_pickle=False)
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], torch_dtype=torch.bfloat16, device_map="auto", local_files_only=True
    ).eval()
    config = copy.deepcopy(getattr(mtq, CONFIGS[job["quantization"]]))
    if job["quantization"] == "int4_awq":
        weights = config["quant_cfg"]["*weight_quantizer"]
        (weights[0] if isinstance(weights, list) else weights)["block_sizes"][-1] = job["group_size"]
    if job["kv_cache"] == "fp8":
        config["quant_cfg"].update(copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"]))

    def feed(quantized: Any) -> None:
        with torch.no_grad():
            for row in windows:
                quantized(input_ids=torch.tensor(row, device=quantized.device)[None].long())

    mtq.quantize(model, config, forward_loop=feed)
    with torch.inference_mode():
        export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=job["out"])


def report(version: str) -> dict[str, Any]:
    """Tell GPU, driver and versions, as seen from here."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    driver = pynvml.nvmlSystemGetDriverVersion()
    return {
        "gpu": torch.cuda.get_device_name(0),
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability(0)),
        "driver": driver.decode() if isinstance(driver, bytes) else driver,
        "tensorrt_llm": version,
        "tools": {name: metadata.version(name) for name in TOOLS},
    }
