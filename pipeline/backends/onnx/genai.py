"""onnxruntime-genai, imported so that it stays at home, and models loaded so that two loads are alike."""

import json
import os
from pathlib import Path
from typing import Any

from pipeline.errors import MeasurementError

NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}
"""onnxruntime and onnxruntime-genai report usage to Microsoft by default, from threads of their own that would also
disturb latency; the variable is read when the library is loaded."""


def library() -> Any:
    """Return the module, telemetry off."""
    os.environ.update(NO_TELEMETRY)
    import onnxruntime_genai

    return onnxruntime_genai


def settings(folder: Path) -> dict[str, Any]:
    """Read genai_config.json; MeasurementError when it is not there or broken."""
    path = folder / "genai_config.json"
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise MeasurementError(f"{path}: cannot be read ({error.strerror}); build the artifact again") from error
    except ValueError as error:
        raise MeasurementError(f"{path}: is not JSON ({error}); build the artifact again") from error
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise MeasurementError(f"{path}: has no section `model`; build the artifact again")
    return value


def model(folder: Path, threads: int) -> Any:
    """Load a folder with `threads` threads, the calling one included; nothing is written into the folder.

    Raises MeasurementError with the runtime's own words for a missing, truncated or damaged file.
    """
    og = library()
    pools = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    settings(folder)
    try:
        config = og.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": pools}}}))
        return og.Model(config)
    except Exception as error:
        # The bindings turn every error of the C library into a bare RuntimeError.
        raise MeasurementError(
            f"{folder}: onnxruntime-genai cannot load it: {error}; build the artifact again"
        ) from error
