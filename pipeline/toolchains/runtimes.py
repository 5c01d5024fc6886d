"""Podman and docker: which of them is here, and how it gives a container the machine's GPUs."""

import shutil

GPUS = {
    # By the name in the CDI file that nvidia-ctk writes; SELinux would keep the devices from the container.
    "podman": ("--device", "nvidia.com/gpu=all", "--security-opt", "label=disable"),
    "docker": ("--gpus", "all"),
}
"""Flags of `run`, by program; the first that is installed is taken."""


def find() -> str | None:
    """Return the program's path, None where there is none."""
    return next((found for name in GPUS if (found := shutil.which(name))), None)
