"""Which `vllm` is run. One rule: the one that ASSAY_VLLM names, which images set; else the pinned one, made for it."""

import asyncio
import os
from pathlib import Path

from containers.engines.contract import EngineError
from pipeline.errors import AssayError
from pipeline.toolchains import environments

VARIABLE = "ASSAY_VLLM"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def version() -> str:
    """Return the pinned version, in whose source flags.toml was read."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("vllm==") for line in lines if line.startswith("vllm=="))


async def find() -> Path:
    """Return the program. EngineError when ASSAY_VLLM names none, or the environment cannot be made."""
    if (named := os.environ.get(VARIABLE)) is not None:
        if not Path(named).is_file():
            raise EngineError(f"{VARIABLE}={named}: there is no such program")
        return Path(named)
    try:
        return (await asyncio.to_thread(environments.environment, "vllm", REQUIREMENTS)).tool("vllm")
    except AssayError as error:
        raise EngineError(f"vLLM cannot be installed: {error}; or name one with {VARIABLE}") from error


def check(found: str) -> None:
    """Refuse a version whose flags may be others; patch releases keep them. EngineError names both."""
    ours = version()
    if found.split(".")[:2] != ours.split(".")[:2]:
        raise EngineError(f"{VARIABLE} names vLLM {found}; flags and requests are those of {ours}, which must be used")
