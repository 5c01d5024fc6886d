"""Where things lie: in a pack, and where a run works. Nothing but Python's own library is there when this is read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACK = ROOT / ".gpu"
WORK = ROOT / ".gpu-work"

WHEELS = "wheels"
LLAMA_CPP = "llama.cpp.tar.xz"
CHECKPOINT = "checkpoint"
SIZES = "sizes.txt"

SITE = "site"
"""Installed wheels, in a run's folder."""
TOOLCHAIN, CUDA = "llama.cpp", "cuda"
"""llama.cpp as it is built, and what of CUDA it is linked with where the toolkit lacks it."""
RESULT = "gpu.json"
