"""Writes pipeline/architectures/tools.json from the installed tools, and from it the table of docs/architectures.md.

`python -m tests.support.architectures` is for whoever changes a tool's version. Tests hold both files against it.
"""

import ast
import importlib.util
import json
import textwrap
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import architectures
from pipeline.architectures import Tools
from pipeline.backends.common import text_models
from pipeline.backends.onnx.optimum import build as optimum
from pipeline.sizing.model import EXPERT_COUNTS
from pipeline.toolchains import environments, llama_cpp

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
BEGIN = "<!-- written by `python -m tests.support.architectures` -->\n"
YES, NO = "yes", "-"


def tools(optimums: Mapping[str, str]) -> dict[str, Any]:
    """Read every table but Optimum's, which `optimums` is."""
    types = _transformers()
    return {
        "versions": {
            "gptqmodel": version("gptqmodel"),
            "llama.cpp": llama_cpp.pin().version,
            "onnxruntime-genai": version("onnxruntime-genai"),
            "optimum-onnx": _pinned(optimum.REQUIREMENTS, "optimum-onnx"),
            "transformers": version("transformers"),
        },
        "transformers": types,
        "tied": _with(types, "tie_word_embeddings"),
        "mixtures": _with(types, *EXPERT_COUNTS),
        "llama_cpp": _llama_cpp(llama_cpp.find().converter.parent / "conversion" / "__init__.py"),
        "genai": _genai(_origin("onnxruntime_genai").parent / "models" / "builder.py"),
        "optimum": dict(sorted(optimums.items())),
        "gptqmodel": _gptqmodel(_origin("gptqmodel").parent / "models" / "auto.py"),
    }


def optimums() -> dict[str, str]:
    """Ask Optimum, in its own environment."""
    environment = environments.environment("optimum", optimum.REQUIREMENTS)
    found = environments.call(environment, optimum.SCRIPT, {}, what="Optimum's table", env=optimum.OFFLINE)
    assert isinstance(found, dict)
    return found


def page(known: Tools) -> str:
    """Return the table of docs/architectures.md: transformers' causal language models, as which references run."""
    types: dict[str, list[str]] = {}
    for model_type, architecture in known.transformers.items():
        if text_models.refusal({"architectures": [architecture]}) is None:
            types.setdefault(architecture, []).append(model_type)
    lines = ["| Architecture | GGUF | GPTQ | AWQ | ONNX | TensorRT-LLM |", "|---|---|---|---|---|---|"]
    alone = []
    for architecture in sorted(types, key=str.casefold):
        here = types[architecture]
        cells = [_cell(architecture, here, backend, known) for backend in ("gguf", "gptq", "awq", "onnx", "trt")]
        if set(cells) == {NO}:
            alone.append(architecture)
            continue
        lines.append(f"| `{architecture}` | " + " | ".join(cells) + " |")
    rest = textwrap.fill(f"As `safetensors` alone, in 16 or 32 bits: {_code(alone)}.", 120, break_long_words=False)
    return "\n".join([*lines, "", rest, ""])


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _cell(architecture: str, types: list[str], backend: str, known: Tools) -> str:
    found = architectures.findings()
    if backend == "gguf":
        return YES if architecture in known.llama_cpp else NO
    if backend == "trt":
        return ", ".join(mode for mode, listed in found.tensorrt_llm.items() if architecture in listed) or NO
    if backend == "onnx":
        builder = known.genai.get(architecture) == "cpu" and architecture not in found.onnx.refused
        exporters = ["builder"] * builder + ["Optimum"] * (architecture in known.optimum)
        return ", ".join(exporters) or NO
    taken = [one for one in types if one in known.gptqmodel - known.mixtures - found.gptq.refused.keys()]
    if backend == "awq":
        taken = [one for one in taken if one in found.awq.folds]
    return YES if taken and taken == types else _code(taken) or NO


def _origin(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def _pinned(requirements: Path, package: str) -> str:
    lines = requirements.read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2].split()[0] for line in lines if line.startswith(f"{package}=="))


def _transformers() -> dict[str, str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()))


def _with(types: Iterable[str], *settings: str) -> list[str]:
    """Return the model types whose configuration class, or its text part's, sets one of these by default."""
    from transformers import CONFIG_MAPPING

    classes = ((model_type, CONFIG_MAPPING[model_type]) for model_type in types)
    texts = ((model_type, made.sub_configs.get("text_config", made)) for model_type, made in classes)
    return sorted(model_type for model_type, made in texts if any(getattr(made, one, None) for one in settings))


def _llama_cpp(table: Path) -> list[str]:
    """Read the keys of TEXT_MODEL_MAP."""
    for statement in ast.parse(table.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "TEXT_MODEL_MAP":
            assert statement.value is not None
            return sorted(ast.literal_eval(statement.value))
    raise LookupError(f"{table}: has no TEXT_MODEL_MAP")


def _genai(source: Path) -> dict[str, str]:
    """Read architecture to execution provider out of the if/elif chain of `create_model`."""
    found: dict[str, str] = {}
    for branch in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if not isinstance(branch, ast.If):
            continue
        forced = [
            statement.value.value
            for statement in branch.body
            if isinstance(statement, ast.Assign)
            and ast.unparse(statement.targets[0]) == "execution_provider"
            and isinstance(statement.value, ast.Constant)
        ]
        for test in ast.walk(branch.test):
            if isinstance(test, ast.Compare) and ast.unparse(test.left) == "config.architectures[0]":
                (name,) = test.comparators
                found.setdefault(ast.literal_eval(name), str(forced[-1]) if forced else "cpu")
    if not found:
        raise LookupError(f"{source}: names no architectures")
    return dict(sorted(found.items()))


def _gptqmodel(source: Path) -> list[str]:
    """Read the keys of MODEL_MAP, and those that statements after it add."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Assign):
            continue
        match node.targets[0], node.value:
            case ast.Name(id="MODEL_MAP"), ast.Dict(keys=keys):
                found.update(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
            case ast.Subscript(value=ast.Name(id="MODEL_MAP"), slice=ast.Constant(value=str(key))), _:
                found.add(key)
    if not found:
        raise LookupError(f"{source}: has no MODEL_MAP")
    return sorted(found)


def main() -> None:
    """Write both files."""
    text = json.dumps(tools(optimums()), indent=1) + "\n"
    architectures.TOOLS.write_text(text, encoding="utf-8")
    head, _, _ = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(head + BEGIN + page(Tools.model_validate_json(text)), encoding="utf-8")


if __name__ == "__main__":
    main()
