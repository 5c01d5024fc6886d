"""Where TensorRT-LLM runs: NVIDIA's release container, or a Python that has it.

Its pins agree with nothing else (a torch, a transformers and an MPI of its own), so it never runs in the main
environment. Paths are the same inside and outside, so one job file fits both.
"""

import os
import secrets
import shlex
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline import processes
from pipeline.backends.contract import Missing
from pipeline.errors import ParamsError, RequirementError
from pipeline.toolchains import environments, runtimes

VARIABLE = "ASSAY_TENSORRT_LLM"
"""`container`, `environment`, or the path of a Python that has TensorRT-LLM. Unset: a container where podman or docker
is here, otherwise an environment."""

Network = Literal["none", "host"]

PYTHONS = ("3.12", "3.10")
"""Versions that TensorRT-LLM has wheels for, the one of NVIDIA's image first."""

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
IMAGES = HERE.parents[2] / "containers" / "images.toml"

RUN = ("--rm", "--interactive", "--ipc", "host", "--ulimit", "memlock=-1", "--ulimit", "stack=67108864")
"""Shared memory, locked pages and stacks are what NVIDIA's documentation asks for."""

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True, slots=True)
class Container:
    """NVIDIA's release image in podman or docker."""

    runtime: str
    image: str

    def command(
        self, words: Sequence[str | Path], *, readable: Sequence[Path], writable: Path, network: Network = "none"
    ) -> list[str]:
        """Return the command line that runs `words`, with `writable` as the working directory.

        Without a network nothing is downloaded and nobody is told; a server needs the host's. ASSAY_CONTAINER_FLAGS and
        ASSAY_CONTAINER_RUN_FLAGS add what this machine needs. The image's own entry point stays: it puts the libraries
        for forward compatibility in place where the driver is older than the image's CUDA.
        """
        tool = Path(self.runtime).name
        flags = shlex.split(os.environ.get("ASSAY_CONTAINER_FLAGS", ""))
        command = [self.runtime, *flags, "run", *RUN, "--network", network, *runtimes.GPUS[tool]]
        command += ["--name", f"assay-{secrets.token_hex(6)}"]
        if tool == "docker":  # whose root is the host's: what it writes must be ours
            command += ["--user", f"{os.getuid()}:{os.getgid()}", "--env", "HOME=/tmp", "--env", "USER=assay"]
        for name, value in OFFLINE.items():
            command += ["--env", f"{name}={value}"]
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            command += ["--env", "CUDA_VISIBLE_DEVICES"]
        for folder in readable:
            command += ["--volume", f"{folder}:{folder}:ro"]
        command += ["--volume", f"{writable}:{writable}", "--workdir", str(writable)]
        command += shlex.split(os.environ.get("ASSAY_CONTAINER_RUN_FLAGS", ""))
        return [*command, self.image, *map(str, words)]

    def end(self, command: Sequence[str]) -> None:
        """Remove the container of a command that was interrupted: it outlives its client."""
        name = command[command.index("--name") + 1]
        subprocess.run([self.runtime, "rm", "--force", "--volumes", name], capture_output=True, check=False)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that has TensorRT-LLM, and its commands beside it."""

    python: Path

    def command(
        self, words: Sequence[str | Path], *, readable: Sequence[Path], writable: Path, network: Network = "none"
    ) -> list[str]:
        """Return the command line that runs `words`; every folder can be read and written as it is."""
        first, *rest = map(str, words)
        return [str(self.python if first == "python3" else self.python.parent / first), *rest]

    def end(self, command: Sequence[str]) -> None:
        """Nothing is left of it."""


Place = Container | Interpreter


def run(
    place: Place,
    words: Sequence[str | Path],
    *,
    what: str,
    readable: Sequence[Path],
    writable: Path,
    progress: processes.Count | None = None,
) -> str:
    """Run a command to its end; BuildError with its last lines when it fails."""
    command = place.command(words, readable=readable, writable=writable)
    try:
        # An open and empty stdin: its end tells a script of ours that we are gone.
        return processes.run(
            command, what=what, env=surroundings(), cwd=writable, stdin=subprocess.PIPE, progress=progress
        )
    except BaseException:
        place.end(command)
        raise


def surroundings() -> Mapping[str, str]:
    """Return the environment variables: offline, and without what would lead to the main environment's packages."""
    return {name: value for name, value in os.environ.items() if name not in environments.FOREIGN} | OFFLINE


def image() -> str:
    """Return the release image that containers/images.toml names, by digest where it has one."""
    pin = tomllib.loads(IMAGES.read_text(encoding="utf-8"))["tensorrt_llm"]
    return f"{pin['image']}@{pin['digest']}" if pin.get("digest") else str(pin["image"])


def version() -> str:
    """Return the version of TensorRT-LLM that everything here is written for: the release image's tag."""
    return image().partition("@")[0].rpartition(":")[2]


def find() -> Place:
    """Choose as VARIABLE says; an environment is made when it is not there. RequirementError where there is no way."""
    wanted = os.environ.get(VARIABLE)
    if (lacks := missing()) != []:
        raise RequirementError(f"{lacks[0].what}: {lacks[0].remedy}")
    if wanted not in (None, "container", "environment"):
        return Interpreter(Path(wanted))
    if wanted != "environment" and (runtime := runtimes.find()) is not None:
        return Container(runtime, image())
    made = environments.environment("tensorrt_llm", REQUIREMENTS, environments.interpreter(*PYTHONS))
    return Interpreter(made.python)


def missing() -> list[Missing]:
    """Say what is lacking for `find`, without making or pulling anything."""
    wanted = os.environ.get(VARIABLE)
    if wanted not in (None, "container", "environment"):
        if not Path(wanted).is_file():
            raise ParamsError(f"{VARIABLE}: {wanted} is no Python; expected container, environment or a path of one")
        return []
    if wanted != "environment" and runtimes.find() is not None:
        return []
    container = f"apt-get install podman, and NVIDIA's container toolkit, which run {image()}"
    if wanted == "container":
        return [Missing(what="neither podman nor docker is installed", remedy=container)]
    try:
        environments.interpreter(*PYTHONS)
    except RequirementError as error:
        return [Missing(what="TensorRT-LLM has no place to run", remedy=f"{container}; or {error}")]
    return []
