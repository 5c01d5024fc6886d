import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import params
from pipeline.errors import ParamsError

ROOT = Path(__file__).parents[2]


def edited(tmp_path: Path, change: str, value: object) -> Path:
    """Write the repository's params.yaml with one key, given by its dotted path, changed."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    *parents, last = change.split(".")
    at = raw
    for parent in parents:
        at = at[parent]
    at[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_the_default_params_hold_every_default_recipe() -> None:
    loaded = params.load(ROOT / "params.yaml")
    gguf = {recipe.quantization for recipe in loaded.artifacts.values() if recipe.backend == "gguf"}
    assert gguf == {"F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"}
    assert {recipe.bits for recipe in loaded.artifacts.values() if recipe.backend == "gptq"} == {4, 8}
    assert {recipe.symmetric for recipe in loaded.artifacts.values() if recipe.backend == "awq"} == {False}
    assert {recipe.precision for recipe in loaded.artifacts.values() if recipe.backend == "onnx"} == {
        "fp32",
        "int8",
        "int4",
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("corpus.window_token", 1, "corpus.window_token: unknown key; did you mean window_tokens?"),
        ("artifacts.gguf-f16.quantisation", "F16", "unknown key; did you mean quantization?"),
        ("artifacts.gguf-f16.quantization", "Q9", "artifacts.gguf-f16.gguf.quantization: "),
        ("artifacts.Bad Name", {"backend": "gguf", "quantization": "F16"}, "it becomes a folder"),
        ("artifacts.gguf-f16", {"backend": "ggml"}, "artifacts.gguf-f16: "),
        (
            "artifacts.gguf-f16",
            {"backend": "gguf", "quantization": "F16"},
            "gguf-f16 does not say what it is built from",
        ),
        (
            "artifacts.gguf-f16.from",
            "artifacts/gguf-q8_0",
            "artifacts.gguf-f16.gguf.from: Input should be 'checkpoint'",
        ),
        ("latency.repeats", 4, "latency.repeats: Input should be greater than or equal to 5 (found 4)"),
        ("selection.constraints", {"perplexity": {}}, "needs at_most, at_least or both"),
        ("selection.constraints", {"perplexty": {"at_most": 1}}, "selection.constraints.perplexty"),
        ("selection.concurrency", 3, "selection.concurrency: 3 is none of serving.concurrency: [1, 4]"),
        ("selection.objective.metric", "served_ttft_second_p50", "did you mean served_ttft_seconds_p50?"),
        ("serving.requests", 5, "serving.requests: Input should be greater than or equal to 6 (found 5)"),
        ("serving.slo.ttft", 1, "serving.slo.ttft: unknown key"),
        ("corpus.max_overlap", float("nan"), "corpus.max_overlap"),
    ],
)
def test_each_mistake_is_named_with_its_key(tmp_path: Path, key: str, value: object, message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        params.load(edited(tmp_path, key, value))
    assert message in str(caught.value)


def test_a_file_that_is_no_mapping_or_missing(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ParamsError, match="expected a mapping, found list"):
        params.load(tmp_path / "list.yaml")
    with pytest.raises(ParamsError, match="is this a folder of `assay init`"):
        params.load(tmp_path / "none.yaml")


def test_an_artifact_named_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    lines = (ROOT / "params.yaml").read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("  gguf-f16:"))
    path = tmp_path / "params.yaml"
    path.write_text("\n".join([*lines[:at], lines[at], *lines[at:]]))
    with pytest.raises(ParamsError, match=rf"gguf-f16 is there twice, in lines {at + 1} and {at + 2}"):
        params.load(path)


def test_validation_and_help_import_no_model_library() -> None:
    """torch alone takes over a second to import."""
    program = (
        "import sys; from pathlib import Path; from pipeline import params, __main__; params.load(Path('params.yaml'));"
        "__main__._parser().format_help();"
        "heavy = {'torch', 'transformers', 'gptqmodel', 'onnxruntime_genai', 'llama_cpp', 'pandas'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
