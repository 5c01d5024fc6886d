"""A toolchain folder is trusted only when a whole build ended: pip, cmake and ninja are faked at the edge."""

import hashlib
import io
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.backends.gguf.mixture import BLOCKS
from pipeline.compute import Compute
from pipeline.errors import BuildError, ParamsError, RequirementError, StorageError
from pipeline.records import Gpu
from pipeline.toolchains import llama_cpp
from pipeline.toolchains.llama_cpp import compiler, source, tiny_model

SCRIPTS = {
    "cmake": """
        printf '%s\n' "$(command -v nvcc)" "$@" > "$COUNTER.cmake"
        while [ $# -gt 0 ]; do [ "$1" = -B ] && mkdir -p "$2/bin"; shift; done
    """,
    "ninja": """
        cd "$2"; shift 2
        echo run >> "$COUNTER"
        [ "$FAIL" = compiler ] && { echo "[1/2] cc"; echo "error: no such header"; exit 1; }
        for tool in "$@"; do echo tool > bin/$tool; [ "$FAIL" = killed ] && kill -9 $$; done
        echo library > bin/libllama.so; echo "[2/2] link"
    """,
    "c++": "echo 'c++ (Fake) 12.0'",
}


PATCH = """Why it is there.

--- a/convert_hf_to_gguf.py
+++ b/convert_hf_to_gguf.py
@@ -1 +1 @@
-convert_hf_to_gguf.py
+patched
"""


@pytest.fixture
def distribution() -> bytes:
    """A source distribution with nothing in it but what is kept."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("convert_hf_to_gguf.py", "conversion/__init__.py", "gguf-py/gguf/__init__.py", "LICENSE",
                     "models/ggml-vocab-tiny.gguf", "models/ggml-vocab-tiny.gguf.inp", "src/unwanted.cpp"):  # fmt: skip
            member = tarfile.TarInfo(f"fake-1.0/vendor/llama.cpp/{name}")
            member.size = len(name) + 1
            tar.addfile(member, io.BytesIO(f"{name}\n".encode()))
    return buffer.getvalue()


@pytest.fixture
def machine(tmp_path: Path, distribution: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the toolchains' folder of a machine whose build tools and package index are fakes."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name, body in SCRIPTS.items():
        (scripts / name).write_text(f"#!/bin/sh\n{body}")
        (scripts / name).chmod(0o755)
    pin = tmp_path / "pin.txt"
    pin.write_text(f"fake==1.0 --hash=sha256:{hashlib.sha256(distribution).hexdigest()}\n")
    python = scripts / "python"
    (tmp_path / "fake-1.0.tar.gz").write_bytes(distribution)
    python.write_text(f"""#!/bin/sh
        if [ "$2" = pipeline.toolchains.llama_cpp.trial ]; then
            [ -z "$3" ] && {{ echo haswell; echo sse42; exit; }}
            echo "$3" >> "$COUNTER.trials"
            [ "$FAIL" = "$3" ] && {{ echo "Q4_K, 2 threads, 37 tokens at once"; kill -SEGV $$; }}
            exit 0
        fi
        while [ $# -gt 0 ]; do
            case "$1" in
                -d) mkdir -p "$2"; cp {tmp_path}/fake-1.0.tar.gz "$2";;
                -w) mkdir -p "$2"; touch "$2/fake-1.0-py3-none-any.whl";;
            esac; shift
        done
    """)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", f"{scripts}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COUNTER", str(tmp_path / "counter"))
    monkeypatch.setenv("FAIL", "")
    monkeypatch.setattr(source, "PIN", pin)
    monkeypatch.setattr(source, "PATCHES", tmp_path / "patches")
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "one.patch").write_text(PATCH)
    monkeypatch.delenv(compiler.KERNELS_WANTED, raising=False)
    monkeypatch.setenv("ASSAY_GPUS", "none")
    return tmp_path / "cache" / "assay" / "toolchains"


def folders(machine: Path) -> list[str]:
    return [path.name for path in machine.iterdir() if path.is_dir()]


def builds(machine: Path) -> int:
    return len((machine.parents[2] / "counter").read_text().splitlines())


def test_a_finished_build_is_found_again_and_not_repeated(machine: Path) -> None:
    with pytest.raises(RequirementError, match="make setup"):
        llama_cpp.find()
    built = llama_cpp.build()
    assert llama_cpp.build() == built == llama_cpp.find()
    assert builds(machine) == 1
    assert built.tool("llama-quantize").read_text() == "tool\n"
    assert built.converter.read_text() == "patched\n"
    assert [path.name for path in built.vocabularies.iterdir()] == ["ggml-vocab-tiny.gguf"]
    assert not (built.root / "src").exists()
    assert folders(machine) == [built.root.name]


@pytest.mark.parametrize(("failure", "message"), [("compiler", "no such header"), ("killed", "was killed by SIGKILL")])
def test_an_interrupted_build_leaves_nothing_that_is_trusted(
    failure: str, message: str, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", failure)
    with pytest.raises(BuildError, match=message):
        llama_cpp.build()
    assert folders(machine) == []
    with pytest.raises(RequirementError):
        llama_cpp.find()
    monkeypatch.setenv("FAIL", "")
    assert llama_cpp.build().tool("llama-server").exists()


def test_what_a_killed_process_left_is_removed(machine: Path) -> None:
    stale = machine / "llama.cpp-0123456789abcdef.partial"
    (stale / "finished" / "bin").mkdir(parents=True)
    built = llama_cpp.build()
    assert folders(machine) == [built.root.name]


def test_a_folder_that_lost_a_program_is_built_again(machine: Path) -> None:
    built = llama_cpp.build()
    built.tool("llama-imatrix").unlink()
    with pytest.raises(RequirementError):
        llama_cpp.find()
    assert llama_cpp.build().tool("llama-imatrix").exists()


def test_a_download_with_another_digest_is_refused(machine: Path, distribution: bytes) -> None:
    """pip is asked to check the digest; a mirror or an old pip that does not must make no difference."""
    (machine.parents[2] / "fake-1.0.tar.gz").write_bytes(distribution + b"\0")
    with pytest.raises(BuildError, match=r"fake-1.0.tar.gz: sha256 is [0-9a-f]{64}, pin.txt asks for"):
        llama_cpp.build()
    assert folders(machine) == []
    assert not (machine.parents[2] / "counter").exists()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("cmake", "apt-get install cmake"),
        ("c++", r"apt-get install g\+\+"),
        ("ninja", "pip install"),
        ("git", "apt-get install git"),
    ],
)
def test_a_missing_tool_is_named_with_its_command(
    name: str, command: str, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = machine.parents[2] / "scripts"
    (scripts / name).unlink(missing_ok=True)
    monkeypatch.setenv("PATH", str(scripts))
    with pytest.raises(RequirementError, match=command):
        llama_cpp.build()


def test_a_full_disk_is_told_before_the_build(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "FREE_BYTES", 2**60)
    with pytest.raises(StorageError, match=r"MiB free, building llama\.cpp needs"):
        llama_cpp.build()


def test_another_compiler_or_flag_is_another_toolchain(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = llama_cpp.build()
    (machine.parents[2] / "scripts" / "c++").write_text("#!/bin/sh\necho 'c++ (Fake) 13.0'\n")
    second = llama_cpp.build()
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DGGML_OTHER=ON"))
    third = llama_cpp.build()
    (machine.parents[2] / "patches" / "one.patch").write_text(PATCH.replace("+patched", "+patched again"))
    fourth = llama_cpp.build()
    assert len({first.root, second.root, third.root, fourth.root}) == 4
    assert llama_cpp.find() == fourth


def trials(machine: Path) -> list[str]:
    return (machine.parents[2] / "counter.trials").read_text().split()


def test_every_kernel_that_the_processor_runs_is_tried_once(machine: Path) -> None:
    built = llama_cpp.build()
    llama_cpp.build()
    assert trials(machine) == ["haswell", "sse42"]
    (note,) = (built.root / llama_cpp.TESTED).iterdir()
    assert note.read_text().endswith(": haswell, sse42\n")


def test_on_another_processor_it_is_tried_again_and_not_built_again(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = llama_cpp.build()
    (note,) = (built.root / llama_cpp.TESTED).iterdir()
    note.rename(note.with_name("of-another-processor"))
    with pytest.raises(RequirementError, match="not yet tried on this processor; run `make setup`"):
        llama_cpp.find()
    monkeypatch.setenv("FAIL", "sse42")
    with pytest.raises(BuildError, match="self-test"):
        llama_cpp.build()
    monkeypatch.setenv("FAIL", "")
    assert llama_cpp.build() == built == llama_cpp.find()
    assert (builds(machine), len(trials(machine))) == (1, 6)


def test_kernels_that_fail_the_trial_leave_no_toolchain_and_are_named(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("FAIL", "haswell")
    with pytest.raises(BuildError) as error:
        llama_cpp.build()
    for words in (
        "was killed by SIGSEGV (", "kernels haswell, Q4_K, 2 threads, 37 tokens at once",
        "compiled by c++ (Fake) 12.0", "`export ASSAY_LLAMA_CPP_KERNELS=sse42,alderlake,cascadelake`",
    ):  # fmt: skip
        assert words in str(error.value)
    assert folders(machine) == []


def test_kernels_are_those_of_the_architecture_or_those_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    first = llama_cpp.build()
    assert "-DGGML_CPU_VARIANTS=sse42;haswell;alderlake;cascadelake" in flags(machine)
    monkeypatch.setenv("ASSAY_LLAMA_CPP_KERNELS", "sse42, haswell")
    assert llama_cpp.build().root != first.root
    assert "-DGGML_CPU_VARIANTS=sse42;haswell" in flags(machine)
    monkeypatch.setenv("ASSAY_LLAMA_CPP_KERNELS", "pentium")
    with pytest.raises(ParamsError, match="ASSAY_LLAMA_CPP_KERNELS=pentium: expected some of sse42,"):
        llama_cpp.find()


def flags(machine: Path) -> list[str]:
    return (machine.parents[2] / "counter.cmake").read_text().splitlines()


@pytest.fixture
def gpus(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put two GPUs of different kinds into that machine, and nvcc where NVIDIA puts it; return that folder."""
    nvidia_smi, cuda = machine.parents[2] / "scripts" / "nvidia-smi", machine.parents[2] / "cuda"
    nvidia_smi.write_text("#!/bin/sh\necho '0, GPU-1, NVIDIA H200, 9.0, 143771, 570.10'\n"
                          "echo '1, GPU-2, NVIDIA L4, 8.9, 23034, 570.10'\n")  # fmt: skip
    nvidia_smi.chmod(0o755)
    cuda.mkdir()
    (cuda / "nvcc").write_text("#!/bin/sh\nprintf 'nvcc: NVIDIA\\n12.8\\n'\n")
    (cuda / "nvcc").chmod(0o755)
    monkeypatch.setattr(compiler, "CUDA", cuda)
    monkeypatch.delenv("ASSAY_GPUS")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv(compiler.CUDA_OFF, raising=False)
    return cuda


def test_cuda_is_built_in_for_the_gpus_that_are_there(
    machine: Path, gpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = llama_cpp.build()
    nvcc, *flags = (machine.parents[2] / "counter.cmake").read_text().splitlines()
    assert nvcc == str(gpus / "nvcc")
    assert {"-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=89-real;90-real"} <= set(flags)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a run on the CPU takes the same tools
    assert llama_cpp.find() == built
    (gpus / "nvcc").write_text("#!/bin/sh\nprintf 'nvcc: NVIDIA\\n13.0\\n'\n")
    assert llama_cpp.build().root != built.root


def test_a_gpu_without_nvcc_is_an_error_until_it_is_left_out(
    machine: Path, gpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gpus / "nvcc").unlink()
    with pytest.raises(RequirementError, match=r"nvcc is needed .* `export ASSAY_LLAMA_CPP_DEVICE=cpu`"):
        llama_cpp.build()
    monkeypatch.setenv("ASSAY_LLAMA_CPP_DEVICE", "cpu")
    built = llama_cpp.build()
    assert "GGML_CUDA" not in (machine.parents[2] / "counter.cmake").read_text()
    (machine.parents[2] / "scripts" / "nvidia-smi").unlink()
    assert llama_cpp.find() == built


def test_layers_go_to_a_gpu_where_it_is_to_be_used_and_was_built_for(machine: Path) -> None:
    built = llama_cpp.build()
    gpu = Gpu(name="NVIDIA L4", compute_capability="8.9", memory_mib=23034, driver="570.10")
    on_gpu, on_cpu = Compute(threads=1, gpus=(gpu,)), Compute(threads=1)
    assert (built.gpu_layers(on_gpu), built.gpu_layers(on_cpu)) == ("0", "0")
    (built.bin / "libggml-cuda.so").touch()
    assert (built.gpu_layers(on_gpu), built.gpu_layers(on_cpu)) == ("all", "0")


def test_two_processes_build_once(machine: Path) -> None:
    """The second waits on the lock, then finds the finished folder. flock is per open file, so threads show it too."""
    found: list[Path] = []
    work: Callable[[], None] = lambda: found.append(llama_cpp.build().root)  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert len(set(found)) == 1
    assert builds(machine) == 1


def test_the_pin_in_the_repository_can_be_read() -> None:
    pin = llama_cpp.pin()
    assert (pin.project, len(pin.sha256)) == ("llama-cpp-python", 64)


@pytest.mark.parametrize("text", ["", "llama-cpp-python==0.3.36\n", "a==1 --hash=sha256:12\n"])
def test_a_pin_without_a_digest_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "pin.txt").write_text(text)
    with pytest.raises(RequirementError, match=r"pin.txt"):
        source.read_pin(tmp_path / "pin.txt")


def test_every_patch_says_why_it_is_there() -> None:
    for name in source.patches():
        reason, _, _ = (source.PATCHES / name).read_text().partition("--- a/")
        assert "The patch goes when" in " ".join(reason.split()) or "the patch goes when" in " ".join(reason.split()), (
            name
        )


def test_the_self_test_knows_every_type_that_recipes_use() -> None:
    assert set(tiny_model.KINDS) == set(BLOCKS)


def test_importing_it_is_cheap() -> None:
    """Every command of the pipeline imports this module; what takes seconds must stay behind the functions."""
    heavy = "{'torch', 'transformers', 'llama_cpp', 'gguf', 'lm_eval'}"
    code = f"import sys, pipeline.toolchains.llama_cpp; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
