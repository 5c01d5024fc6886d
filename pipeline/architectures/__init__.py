"""Which architectures each tool takes, and which of them it gets wrong: all that Assay knows of families by name.

`tools.json` holds the tools' own tables, and is written from the tools at their pinned versions by
`python -m tests.support.architectures`. The files in `findings/`, one a backend, are kept by hand: each line is an
architecture that a tool takes and gets wrong, found by taking a random checkpoint of it through the backend as
tests/contract/test_architectures.py does. Both answer on a machine that has none of the tools.

An *architecture* is a class that config.json names, such as LlamaForCausalLM; a *model type* is its `model_type`, such
as llama. Some tools go by the one, some by the other.
"""

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.records import Record

TOOLS = Path(__file__).with_name("tools.json")
FINDINGS = Path(__file__).with_name("findings")


class Tools(Record):
    """The tables of the tools themselves."""

    versions: dict[str, str]
    """Name and version of each tool that was asked."""
    transformers: dict[str, str]
    """Model type to the architecture that AutoModelForCausalLM makes of it."""
    tied: frozenset[str]
    """Model types of transformers whose embedding and output head are one tensor where config.json does not say."""
    mixtures: frozenset[str]
    """Model types of transformers whose configuration has a number of experts."""
    llama_cpp: frozenset[str]
    """Architectures that convert_hf_to_gguf.py converts."""
    genai: dict[str, str]
    """Architecture to the execution provider that onnxruntime-genai's model builder builds it for; "cpu" is any."""
    optimum: dict[str, str]
    """Architecture to the model type that Optimum's ONNX exporter takes it as."""
    gptqmodel: frozenset[str]
    """Model types that GPTQModel quantizes."""


class Gptq(Record):
    """What was found of GPTQ."""

    refused: dict[str, str]
    """Model type to the reason against it."""


class Awq(Record):
    """What was found of AWQ."""

    folds: frozenset[str]
    """Model types whose scales are folded into the right norms."""


class Onnx(Record):
    """What was found of onnxruntime-genai's model builder."""

    refused: dict[str, str]
    """Architecture to the reason against it."""
    rope: dict[str, frozenset[str]]
    """Architecture to the kinds of RoPE that come out right; "default" is for all that have no line."""


class Findings(Record):
    """What no tool's table says."""

    gptq: Gptq
    awq: Awq
    onnx: Onnx
    tensorrt_llm: dict[str, dict[str, frozenset[str]]]
    """Mode of TensorRT-LLM to architecture to the quantizations that its documentation lists."""


def of(config: Mapping[str, Any]) -> str:
    """Return the first architecture that a config.json names, or "none"."""
    return str((config.get("architectures") or ["none"])[0])


@functools.cache
def tools() -> Tools:
    """Read tools.json."""
    return Tools.load(TOOLS)


@functools.cache
def findings() -> Findings:
    """Read the files of all backends."""
    files = {path.stem: path.read_text(encoding="utf-8") for path in FINDINGS.glob("*.toml")}
    return Findings.model_validate({backend: tomllib.loads(text) for backend, text in files.items()})
