"""What `make` sets up before anything else is there."""

import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bootstrap

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
sys.argv = ["assay", "--help"]
import pipeline.__main__
from pipeline.toolchains import llama_cpp
from pipeline.toolchains.llama_cpp import selftest, tiny_model, trial
llama_cpp.load(lambda *line: None)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_llama_cpp_is_built_and_tried_with_what_is_installed_first() -> None:
    """The rest of the environment is still being installed then, so that nothing else may be imported."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    known = packages_distributions()
    imported = {canonicalize_name(one) for name in done.stdout.split() for one in known.get(name, ())}
    assert imported - {"assay-pipeline", "llama-cpp-python"} <= closure(bootstrap.TOOLCHAIN) | {"setuptools"}


def closure(names: Iterable[str]) -> set[str]:
    """Return these distributions and all that they need here."""
    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            needs = map(Requirement, requires(name) or ())
            waiting += [
                canonicalize_name(need.name)
                for need in needs
                if need.marker is None or need.marker.evaluate({"extra": ""})
            ]
    return found
