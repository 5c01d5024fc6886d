"""The demo's conversions and scorings as a person does them with the bare tools: one process a step, nothing shared.

Each subcommand is one such step; `__main__` runs them in order and adds up the time.
"""

import argparse
import math
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def quantize(arguments: argparse.Namespace) -> None:
    """GPTQModel as its README shows, on the CPU."""
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # on two cores its own default is one, and its loader then fails
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization import METHOD

    awq = arguments.format == "awq"
    config = QuantizeConfig(bits=arguments.bits, group_size=128, sym=not awq, desc_act=False, offload_to_disk=False)
    if awq:
        config = QuantizeConfig(
            bits=arguments.bits,
            group_size=128,
            sym=False,
            quant_method=METHOD.AWQ,
            format="gemm",
            offload_to_disk=False,
        )
    model = GPTQModel.load(str(arguments.source), config, device="cpu")
    ids = np.load(arguments.windows)["ids"].astype(np.int64)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ids]
    model.quantize(rows, batch_size=1, backend=BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH)
    model.save(str(arguments.out))


def score_transformers(arguments: argparse.Namespace) -> None:
    """The loop that every perplexity tutorial shows."""
    model = cast(Any, AutoModelForCausalLM).from_pretrained(arguments.source, dtype="auto")
    _loop(model, arguments.windows)


def score_gptqmodel(arguments: argparse.Namespace) -> None:
    """The same loop over GPTQModel's own loading."""
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
    from gptqmodel import BACKEND, GPTQModel

    backend = BACKEND.AWQ_TORCH if arguments.format == "awq" else BACKEND.GPTQ_TORCH
    _loop(GPTQModel.load(str(arguments.source), device="cpu", backend=backend).model, arguments.windows)


def score_genai(arguments: argparse.Namespace) -> None:
    """onnxruntime-genai: one generator a window."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read on import
    import onnxruntime_genai as og

    model = og.Model(str(arguments.source))
    total = count = 0.0
    for row in np.load(arguments.windows)["ids"]:
        options = og.GeneratorParams(model)
        options.set_search_options(max_length=len(row))
        generator = og.Generator(model, options)
        generator.append_tokens(row[:-1])
        logits = torch.from_numpy(generator.get_output("logits")[0]).float()
        total += float(
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(row[1:].astype(np.int64)), reduction="sum")
        )
        count += len(row) - 1
    print(f"perplexity {math.exp(total / count):.4f}")


def _loop(model: Any, windows: Path) -> None:
    total = count = 0.0
    with torch.inference_mode():
        for row in np.load(windows)["ids"].astype(np.int64):
            ids = torch.from_numpy(row)[None]
            logits = model(input_ids=ids[:, :-1]).logits.float()[0]
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += len(row) - 1
    print(f"perplexity {math.exp(total / count):.4f}")


def main() -> None:
    """Run one step."""
    steps = {f.__name__: f for f in (quantize, score_transformers, score_gptqmodel, score_genai)}
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=steps)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--format", choices=("gptq", "awq"))
    parser.add_argument("--bits", type=int)
    options = parser.parse_args()
    steps[options.step](options)


if __name__ == "__main__":
    main()
