"""Runs trtllm-build where TensorRT-LLM is installed: `run(job)`.

Not started directly, so that it ends with us: a container outlives the client that started it, and would go on timing
kernels on a GPU that the next build wants.
"""

import signal
import subprocess
import sys
from typing import Any


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run the job's command; exit as it does."""
    code = subprocess.run(job["command"], check=False).returncode
    if code < 0:
        print(f"trtllm-build was killed by {signal.Signals(-code).name}", flush=True)  # noqa: T201 (these are the last lines)
    if code != 0:
        sys.exit(1)
    return {}
