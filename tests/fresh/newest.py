"""The flow, small and up to the ranking, on the newest supported Python of this machine that is not the tests' own.

`make newest` calls it. The clone and its environment, which takes gigabytes where pip finds torch for CUDA only, are
removed at the end.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bootstrap import NEWEST, OLDEST
from tests.fresh import small

ARTIFACTS = ("gguf-q8_0", "gptq-int4", "onnx-int4")


def main() -> int:
    """Run it; return 1 when an artifact was not measured, 0 also where there is no other Python."""
    found = newest()
    if found is None:
        print(f"no Python newer than {sys.version_info.major}.{sys.version_info.minor} starts here: no flow on one")
        return 0
    python, environment = found
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="assay-newest-") as scratch:
        clone = Path(scratch) / "assay"
        small.clone(clone, ARTIFACTS)
        subprocess.run(["make", f"PYTHON={python}", "setup"], cwd=clone, env=environment, check=True)
        ready = time.monotonic()
        subprocess.run([clone / ".venv/bin/dvc", "repro", "selection"], cwd=clone, check=True)
        ranking = json.loads((clone / "selection.json").read_text(encoding="utf-8"))["ranking"]
    measured = [one["name"] for one in ranking if one["metrics"].get("served_output_tokens_per_second")]
    print(f"{python}: set up in {ready - began:.0f} s, flow in {time.monotonic() - ready:.0f} s, measured {measured}")
    return int(sorted(measured) != sorted(ARTIFACTS))


def newest() -> tuple[str, dict[str, str]] | None:
    """Find the newest supported Python beyond this one that starts, and the environment that it starts in.

    pyenv puts a program of every version that it holds on PATH, which starts only where PYENV_VERSION names it.
    """
    for minor in range(NEWEST, max(OLDEST, sys.version_info.minor), -1):
        python = f"python3.{minor}"
        environment = {**os.environ, "PYENV_VERSION": f"3.{minor}"}
        try:
            done = subprocess.run([python, "-c", ""], env=environment, capture_output=True, check=False)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            return python, environment
    return None


if __name__ == "__main__":
    sys.exit(main())
