"""The toolchain that is built here: what its libraries hold, and that the self-test finds kernels that are wrong."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.backends.gguf import library
from pipeline.errors import BuildError, RequirementError
from pipeline.toolchains import llama_cpp, store
from pipeline.toolchains.llama_cpp import LlamaCpp, compiler, selftest, tiny_model, trial
from pipeline.toolchains.llama_cpp.tiny_model import KINDS

TILES = re.compile(r"\t(ldtilecfg|tileload|tdp)")
"""Instructions of AMX."""


@pytest.fixture(scope="module")
def toolchain() -> LlamaCpp:
    try:
        return llama_cpp.find()
    except RequirementError as error:
        pytest.skip(str(error))


def test_the_kernels_are_those_of_the_architecture(toolchain: LlamaCpp) -> None:
    found = {path.stem.removeprefix("libggml-cpu-") for path in toolchain.bin.glob("libggml-cpu-*.so")}
    assert found == set(compiler.kernels())


def test_no_library_holds_an_instruction_of_amx(toolchain: LlamaCpp) -> None:
    """GCC compiles llama.cpp's AMX code wrongly; see compiler.KERNELS."""
    for path in toolchain.bin.glob("libggml-cpu-*.so"):
        with subprocess.Popen(["objdump", "-d", path], stdout=subprocess.PIPE, text=True) as listing:
            assert listing.stdout is not None
            lines = 0
            for lines, line in enumerate(listing.stdout, 1):  # noqa: B007
                assert not TILES.search(line), f"{path.name}: {line}"
        assert lines > 10_000, path.name


def test_no_program_names_the_folder_it_was_built_in(toolchain: LlamaCpp) -> None:
    for path in toolchain.bin.iterdir():
        assert str(store.root()).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_K", "IQ4_XS", "IQ2_S", "IQ1_M"])
def test_a_weight_that_is_read_wrongly_is_beyond_the_limit(name: str, toolchain: LlamaCpp) -> None:
    """One matrix of nine is read as if an eighth of its rows were their neighbours."""
    module, kind = library.library(), KINDS[name]
    model = tiny_model.make(toolchain.bin / "libggml-base.so", kind)
    assert trial.error(module, name, model, 1) < kind.limit
    rows = model.stored["blk.0.attn_output"].copy()
    rows[::8] = np.roll(rows, 1, axis=0)[::8]
    assert trial.error(module, name, replace(model, stored={**model.stored, "blk.0.attn_output": rows}), 1) > kind.limit


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (b"\x0f\x0b", "was killed by SIGILL .* on .*, kernels {kernels}, IQ4_XS, 1 threads, 1 tokens at once"),
        (
            b"\xc3",
            r"exited with 1 on .*, kernels {kernels}, IQ4_XS, 1 threads: logits are off by .*, at most 0.08 expected",
        ),
    ],
    ids=["an instruction that the processor lacks", "a function that returns at once"],
)
def test_wrong_machine_code_is_found_with_what_it_is_in(
    code: bytes, words: str, toolchain: LlamaCpp, tmp_path: Path
) -> None:
    (kernels, *_) = selftest.run(toolchain.root, all_kernels=False)
    shutil.copytree(toolchain.bin, tmp_path / "bin", symlinks=True)
    path = tmp_path / "bin" / f"libggml-cpu-{kernels}.so"
    symbols = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    address = re.search(r"^([0-9a-f]+) [tT] ggml_vec_dot_iq4_xs_q8_K$", symbols, flags=re.MULTILINE)
    assert address is not None
    with path.open("r+b") as file:  # code lies in the file where it lies in memory
        file.seek(int(address[1], 16))
        file.write(code)
    with pytest.raises(BuildError, match=words.format(kernels=kernels)) as error:
        selftest.run(tmp_path, all_kernels=False)
    assert "ASSAY_LLAMA_CPP_KERNELS" in str(error.value) or len(compiler.kernels()) == 1
