"""Whether llama.cpp's kernels compute what they should on this processor: a toolchain is trusted once it has run.

    python -m pipeline.toolchains.llama_cpp.selftest

tries the toolchain that ASSAY_LLAMA_CPP names with the kernels that it would use here, and prints a line about it.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

from pipeline import endings, machine
from pipeline.errors import AssayError, BuildError
from pipeline.toolchains import llama_cpp
from pipeline.toolchains.llama_cpp import compiler

ROOT = Path(__file__).parents[3]
TRIAL = "pipeline.toolchains.llama_cpp.trial"
SECONDS = 300.0
"""After which a trial hangs; it takes a few."""
TAIL_LINES = 15


def run(root: Path, *, bindings: Path | None = None, all_kernels: bool = True) -> tuple[str, ...]:
    """Try a toolchain's kernels that this processor can run, or only those it would use; return their names.

    `bindings` is their wheel, where they are not installed. BuildError says what was wrong, and what to set.
    """
    found = _run(root, bindings).split()
    if not found:
        raise BuildError(f"no kernels of {root} run on {processor()}; {_remedy()}")
    tried = tuple(found if all_kernels else found[:1])
    for name in tried:
        _run(root, bindings, name)
    return tried


def processor() -> str:
    """Name this machine's processor."""
    return f"{machine.fingerprint().cpu} ({platform.machine()})"


def _run(root: Path, bindings: Path | None, *words: str) -> str:
    """Run a trial to its end in a process of its own, and return what it printed."""
    path = os.pathsep.join(filter(None, [str(ROOT), str(bindings or ""), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "ASSAY_LLAMA_CPP": str(root), "PYTHONPATH": path}
    # Products are tiny: NumPy's need one thread, and where the cores are busy llama.cpp's would spin for nothing.
    env |= {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", TRIAL, *words]
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        how, printed, said = f"did not end in {SECONDS:g} s", _text(error.stdout), _text(error.stderr)
    else:
        if done.returncode == 0:
            return done.stdout
        how, printed, said = endings.words(done.returncode), done.stdout, done.stderr
    step = (printed.strip().splitlines() or ["before its first step"])[-1]
    kernels = f"kernels {words[0]}" if words else "choosing kernels"
    compiled = f"compiled by {compiler.version('c++')}; " if bindings else ""
    tail = "".join(f"\n  {line}" for line in said.strip().splitlines()[-TAIL_LINES:])
    raise BuildError(
        f"llama.cpp's self-test {how} on {processor()}, {kernels}, {step}; {compiled}{_remedy(*words)}{tail}"
    )


def _remedy(*wrong: str) -> str:
    """Say what to set: the kernels that are left, or another compiler."""
    others = ",".join(name for name in compiler.kernels() if name not in wrong)
    left = f"to leave these kernels out, `export {compiler.KERNELS_WANTED}={others}`; " if wrong and others else ""
    return f"{left}for another compiler, set CC and CXX; then run `make setup`, and for an image `dvc repro`"


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def main() -> int:
    """Try what would be used here; return the exit code."""
    try:
        (kernels,) = run(llama_cpp.find().root, all_kernels=False)
    except AssayError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"every weight type on {processor()}, kernels {kernels}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
