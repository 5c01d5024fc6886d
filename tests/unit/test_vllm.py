"""vLLM's command lines, requests and image, held against golden files and against what was read of its source.

`python -m tests.unit.test_vllm` writes the golden files again.
"""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from containers.engines.contract import Sampling
from containers.engines.vllm import program
from containers.engines.vllm.engine import MOST_CANDIDATES, VllmEngine, environment
from containers.gateway.requests import MOST_CANDIDATES as MOST_ASKED
from pipeline.images import engine as images
from pipeline.images import manifest, wheels
from pipeline.images.manifest import ROOT
from pipeline.records import Placement

GOLDEN = Path(__file__).parents[1] / "golden" / "vllm"
ENGINE = ROOT / "containers" / "engines" / "vllm"
READ: dict[str, Any] = tomllib.loads((ENGINE / "flags.toml").read_text(encoding="utf-8"))
TWO_GPUS = Placement(tensor_parallel=2, gpu_memory_fraction=0.85)
CASES: dict[str, tuple[str, str, Placement]] = {
    "safetensors-bfloat16": ("safetensors", "bfloat16", Placement()),
    "safetensors-float16-two-gpus": ("safetensors", "float16", TWO_GPUS),
    "gptq": ("gptq", "bfloat16", Placement()),
    "awq": ("awq", "float16", TWO_GPUS),
}
"""Backend, config.json's dtype, and how it is placed."""

EVERYTHING = Sampling(max_tokens=5, temperature=0.5, top_p=0.9, seed=2**63, candidates=3, schema={"type": "object"})


def engine(backend: str, placement: Placement) -> VllmEngine:
    return VllmEngine(
        Path("/artifact"), backend, placement=placement, gpus=2, slots=4, context_tokens=4096, drain_seconds=30.5
    )


def command(name: str) -> list[str]:
    backend, dtype, placement = CASES[name]
    return ["vllm", "serve", "/artifact", *engine(backend, placement).arguments(Path("/run/engine.sock"), dtype, 4096)]


@pytest.mark.parametrize("name", CASES)
def test_command_lines(name: str) -> None:
    assert "\n".join(command(name)) + "\n" == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_every_flag_was_read_about(name: str) -> None:
    flags = [word for word in command(name) if word.startswith("--")]
    assert {*flags, "serve"} <= READ["flags"].keys()
    assert not set(flags) & READ["absent"].keys()
    assert len(flags) == len(set(flags))


def test_every_field_and_variable_was_read_about() -> None:
    fields: set[str] = set()
    for sampling in (EVERYTHING, Sampling(max_tokens=1)):
        fields |= engine("gptq", Placement())._request([1], sampling, frozenset({2})).keys()
    assert fields | {"prompt_logprobs"} == READ["request"].keys()
    outer = {"PATH": "/bin", "VLLM_USE_RUST_FRONTEND": "1", "PYTHONPATH": "/opt/python", "CUDA_VISIBLE_DEVICES": "1"}
    assert environment(outer).keys() == READ["environment"].keys() | {"PATH", "CUDA_VISIBLE_DEVICES"}


def test_every_seed_repeats() -> None:
    """vLLM takes -1 for none, and 64 bits at most."""
    seeds = [0, 2**63 - 1, 2**63 + 5, -1, -(2**70) - 3]
    sent: list[int] = [
        engine("gptq", Placement())._request([1], Sampling(max_tokens=1, seed=seed), frozenset())["seed"]
        for seed in seeds
    ]
    assert all(0 <= one < 2**63 for one in sent)
    assert sent[0] == 0


def test_clients_get_as_many_candidates_as_they_may_ask_for() -> None:
    assert MOST_CANDIDATES == MOST_ASKED


def test_one_version_everywhere() -> None:
    pinned = manifest.load().vllm
    assert pinned is not None
    assert READ["tag"] == f"v{program.version()}" == pinned.image.rpartition(":")[2]


def test_what_an_image_is_built_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build context, but for the wheels: the golden folder holds all that is decided here."""
    house = tmp_path / "house"
    house.mkdir()
    (house / "a-1-py3-none-any.whl").touch()
    monkeypatch.setattr(wheels, "wheelhouse", lambda requirements, python: house)
    images.context("vllm", tmp_path / "context", "3.12")
    found = sorted(path.relative_to(tmp_path / "context").as_posix() for path in (tmp_path / "context").rglob("*.*"))
    assert found == ["requirements.txt", "wheelhouse/a-1-py3-none-any.whl"]
    assert (tmp_path / "context" / "Containerfile").read_text() == (GOLDEN / "Containerfile").read_text()


if __name__ == "__main__":
    for case in CASES:
        (GOLDEN / f"{case}.txt").write_text("\n".join(command(case)) + "\n", encoding="utf-8")
    (GOLDEN / "Containerfile").write_bytes((ENGINE / "image" / "Containerfile").read_bytes())
