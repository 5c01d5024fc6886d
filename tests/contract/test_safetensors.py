"""The backend of unquantized checkpoints: byte for byte where nothing has to change, else each number rounded once."""

import asyncio
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from containers.engines import engine
from containers.engines.contract import Sampling
from evals.scoring import score
from pipeline import digests
from pipeline.backends.common import causal_lm, checks, hf_tokenizer
from pipeline.backends.safetensors import build as backend
from pipeline.backends.safetensors.backend import Safetensors
from pipeline.checkpoints.weights import Entry, read_header
from pipeline.compute import Compute
from pipeline.errors import BuildError, MeasurementError
from pipeline.records import FILE, Artifact
from tests.support.demo import CHECKPOINT
from tests.support.fakes import windows

BF16 = Safetensors(backend="safetensors", dtype="bfloat16")
F16 = Safetensors(backend="safetensors", dtype="float16")
HERE = Compute(threads=2)
INDEX = "model.safetensors.index.json"


def build(recipe: Safetensors, out: Path, checkpoint: Path = CHECKPOINT) -> tuple[Path, tuple[str, ...]]:
    out.mkdir()
    return out, recipe.build(checkpoint, out, out, HERE).notes


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for path in sorted(folder.glob("*.safetensors")) for name, one in load_file(path).items()}


def checkpoint(folder: Path, change: Mapping[str, torch.Tensor]) -> Path:
    """A copy of the demo with some tensors exchanged."""
    shutil.copytree(CHECKPOINT, folder)
    for path in folder.glob("*.safetensors"):
        held = load_file(path)
        save_file({name: change.get(name, one) for name, one in held.items()}, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(BF16, tmp_path_factory.mktemp("st") / "same")[0]


def test_a_checkpoint_of_that_dtype_is_kept_byte_for_byte(same: Path) -> None:
    kept = {path.name for path in same.iterdir()}
    assert {"config.json", INDEX, "tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= kept
    for name in kept:
        assert (same / name).read_bytes() == (CHECKPOINT / name).read_bytes()
    assert not {"train.py", "README.md"} & kept


def test_another_dtype_rounds_each_number_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "BLOCK_BYTES", 4096)  # so that a tensor takes many
    half, notes = build(F16, tmp_path / "half")
    original, written = tensors(CHECKPOINT), tensors(half)
    assert original.keys() == written.keys()
    for name, tensor in original.items():
        assert torch.equal(written[name], tensor.to(torch.float16)), name
    assert json.loads((half / "config.json").read_text()) == {
        **json.loads((CHECKPOINT / "config.json").read_text()), "dtype": "float16"
    }  # fmt: skip
    index = json.loads((half / INDEX).read_text())
    assert index["weight_map"] == json.loads((CHECKPOINT / INDEX).read_text())["weight_map"]
    assert index["metadata"]["total_size"] == sum(one.nbytes for one in written.values())
    assert notes == ("weights stored as bfloat16 were converted",)
    again, _ = build(F16, tmp_path / "again")
    assert digests.list_files(half) == digests.list_files(again)


def test_a_tensor_of_another_dtype_is_converted_and_integers_are_not(tmp_path: Path) -> None:
    norm = "model.norm.weight"
    exact = tensors(CHECKPOINT)[norm].float() + 1e-3
    source = checkpoint(tmp_path / "source", {norm: exact, "model.layers.0.input_layernorm.weight": torch.arange(256)})
    out, notes = build(BF16, tmp_path / "out", source)
    written = tensors(out)
    assert torch.equal(written[norm], exact.to(torch.bfloat16))
    assert written["model.layers.0.input_layernorm.weight"].dtype == torch.int64
    assert notes == ("weights stored as float32 were converted",)


def test_a_number_that_the_dtype_cannot_hold_is_an_error(tmp_path: Path) -> None:
    large = torch.full((256,), 1e5, dtype=torch.bfloat16)
    source = checkpoint(tmp_path / "source", {"model.norm.weight": large})
    with pytest.raises(BuildError, match=r"model\.norm\.weight holds .*float16 can hold; set dtype: bfloat16"):
        build(F16, tmp_path / "out", source)


def test_a_file_that_is_cut_off_after_its_header_was_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(tmp_path / "source", {"model.norm.weight": torch.ones(256)})

    def cut(path: Path, name: str) -> tuple[Entry, ...]:
        found = read_header(path, name)
        os.truncate(path, path.stat().st_size - 8)
        return found

    monkeypatch.setattr(backend, "read_header", cut)
    with pytest.raises(BuildError, match=r"\.safetensors ends 8 bytes before .* does"):
        build(BF16, tmp_path / "out", source)


def test_the_structural_checks_pass_and_find_a_fault(same: Path, tmp_path: Path) -> None:
    vocabulary = hf_tokenizer.vocabulary(hf_tokenizer.load(CHECKPOINT), ["a text"])
    with BF16.inspect(same, CHECKPOINT) as contents:
        assert contents.bits_per_weight == pytest.approx(16)
        assert checks.problems(contents, vocabulary) == []
    nothing = tensors(CHECKPOINT)["lm_head.weight"] * float("nan")
    damaged = checkpoint(tmp_path / "damaged", {"lm_head.weight": nothing})
    with BF16.inspect(damaged, CHECKPOINT) as contents:
        assert any("lm_head.weight holds" in problem for problem in checks.problems(contents, vocabulary))


def test_it_scores_as_the_reference_does(same: Path) -> None:
    text = windows([list(range(3, 403, 4))])
    with BF16.open(same, HERE) as runner:
        np.testing.assert_array_equal(score(runner, text), score(causal_lm.load(CHECKPOINT, "bfloat16", HERE), text))
    assert not BF16.quantized


def test_a_damaged_folder_is_a_measurement_error(same: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(same, damaged)
    weights = min(damaged.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(MeasurementError, match="build it again"), BF16.open(damaged, HERE):
        pass


def test_without_a_gpu_it_is_served_by_transformers(same: Path) -> None:
    Artifact(
        name="it", recipe=BF16.model_dump(), checkpoint="c", calibration="e", digest="a" * 64,
        files=digests.list_files(same),
    ).save(same / FILE)  # fmt: skip
    prompt = [1, 300, 17, 42]

    async def ask() -> tuple[list[int], str]:
        served: Any = engine(same, compute=HERE, slots=1, context_tokens=256)
        facts = await served.start()
        try:
            wanted = Sampling(max_tokens=12, temperature=0, ignore_eos=True)
            return [token.id async for token in served.generate(prompt, wanted)], facts.runtime
        finally:
            await served.stop()

    tokens, runtime = asyncio.run(ask())
    with BF16.open(same, HERE) as runner:
        assert tokens == list(runner.generate(np.array(prompt, np.int32), 12))
    assert runtime.startswith("transformers")
    assert "gptqmodel" not in runtime
