"""A built image, really started: podman or docker, whichever is there, as a careful operator runs it.

The root file system is read-only, nothing is allowed to gain privileges, every capability is dropped, and the network
is the host's, since verification talks over loopback.
"""

import json
import os
import secrets
import shlex
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import endings
from pipeline.errors import BuildError, RequirementError
from pipeline.images import rootless
from pipeline.toolchains import runtimes

CAREFUL = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
    *("--network", "host"),
)
POLL_SECONDS = 0.1
LOG_LINES, TAIL_LINES = 1000, 15
"""What is looked through, and shown at most, of a container's output."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A container runtime's command, with what this machine needs beside it.

    ASSAY_CONTAINER_FLAGS goes before the subcommand, ASSAY_CONTAINER_RUN_FLAGS after `run`: some machines lack what
    the runtime takes for granted, such as a cgroup tree of their own.
    """

    command: str

    @property
    def name(self) -> str:
        """Podman or docker."""
        return Path(self.command).name

    def call(
        self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, errors: bool = False
    ) -> str:
        """Run one subcommand; return its stdout, and behind it stderr for `errors`. BuildError when it fails."""
        flags = shlex.split(os.environ.get("ASSAY_CONTAINER_FLAGS", ""))
        done = subprocess.run(
            [self.command, *flags, *arguments],
            env=dict(env) if env else None,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            how = f"{self.name} {arguments[0]} {endings.words(done.returncode)}"
            raise BuildError(f"{how}: {done.stderr.strip()[-2000:]}")
        return (done.stdout + (done.stderr if errors else "")).strip()

    def images(self) -> set[str]:
        """Return the ids of all images in the runtime's storage."""
        return set(self.call("images", "--quiet", "--no-trunc").split())

    def load(self, layout: Path) -> str:
        """Take an OCI layout into the runtime's own storage; return the image's id there."""
        if self.name == "podman":
            # Relative, because the image is named after the path, and not every path is a name.
            return self.call("pull", "--quiet", f"oci:{layout.name}", cwd=layout.resolve().parent).splitlines()[-1]
        with TemporaryDirectory(prefix="assay-") as folder:
            archive = Path(folder) / "image.tar"
            with tarfile.open(archive, "w") as tar:
                for path in sorted(layout.rglob("*")):
                    tar.add(path, path.relative_to(layout), recursive=False)
            return self.call("load", "--quiet", "--input", str(archive)).rpartition("Loaded image: ")[2].split()[-1]


class Container:
    """One started container."""

    def __init__(self, runtime: Runtime, id_: str) -> None:
        self._runtime, self._id = runtime, id_

    @property
    def running(self) -> bool:
        """Whether its process has not ended."""
        return self._runtime.call("inspect", "--format", "{{.State.Running}}", self._id) == "true"

    @property
    def pid(self) -> int:
        """Its first process, seen from outside."""
        return int(self._runtime.call("inspect", "--format", "{{.State.Pid}}", self._id))

    @property
    def user_id(self) -> int:
        """The user that its first process runs as, by the container's own numbers."""
        process = Path("/proc") / str(self.pid)
        status = (process / "status").read_text(encoding="utf-8")
        outside = int(next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:")))
        return rootless.inside(outside, (process / "uid_map").read_text(encoding="utf-8"))

    @property
    def last_lines(self) -> str:
        """What it printed last, requests left out."""
        lines = self._runtime.call("logs", "--tail", str(LOG_LINES), self._id, errors=True).splitlines()
        return "\n".join([line for line in lines if '"event": "request"' not in line][-TAIL_LINES:])

    def beside(self, program: str, *arguments: str) -> str:
        """Run a program of its image in a container of its own; return what it printed. BuildError when it fails."""
        image = self._runtime.call("inspect", "--format", "{{.Image}}", self._id)
        flags = shlex.split(os.environ.get("ASSAY_CONTAINER_RUN_FLAGS", ""))
        return self._runtime.call("run", "--rm", *CAREFUL, *flags, "--entrypoint", program, image, *arguments)

    @property
    def ending(self) -> str:
        """How its process ended, in words."""
        form = "{{.State.ExitCode}} {{.State.OOMKilled}}"
        code, starved = self._runtime.call("inspect", "--format", form, self._id).split()
        return endings.words(int(code)) + (": its memory limit was too low" if starved == "true" else "")

    @property
    def engine_failure(self) -> str | None:
        """Why the engine in it ended, as its gateway tells; None while none has."""
        lines = self._runtime.call("logs", "--tail", str(LOG_LINES), self._id, errors=True).splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{") and '"event": "engine_failed"' in line]
        return str(told[0]["why"]) if told else None

    def terminate(self) -> None:
        """Send SIGTERM, as an orchestrator does, and return at once."""
        self._runtime.call("kill", "--signal", signal.Signals.SIGTERM.name, self._id)

    def wait(self, seconds: float) -> int | None:
        """Return its exit code, None when it has not ended in time."""
        until = time.monotonic() + seconds
        while self.running:
            if time.monotonic() > until:
                return None
            time.sleep(POLL_SECONDS)
        return int(self._runtime.call("inspect", "--format", "{{.State.ExitCode}}", self._id))


def find() -> Runtime:
    """Return the runtime that is here. RequirementError, with what would help, when there is none."""
    if (command := runtimes.find()) is None:
        raise RequirementError("no container runtime: `apt-get install podman` brings one")
    runtime = Runtime(command)
    if runtime.name == "podman" and (lack := rootless.lack("podman")) is not None:
        raise RequirementError(f"podman starts no container here: {lack}")
    return runtime


@contextmanager
def started(
    layout: Path, environment: Mapping[str, str], arguments: Sequence[str] = (), *, gpus: bool = False
) -> Iterator[Container]:
    """Run an image until the block ends, then remove it and what it took up.

    `environment` reaches the container by name only: its values stay off every command line. RequirementError without
    a runtime; BuildError when the image does not start.
    """
    runtime = find()
    known = runtime.images()
    image = runtime.load(layout)
    name = f"assay-{secrets.token_hex(6)}"
    # GPUs share layers through shared memory.
    hardware = (*runtimes.GPUS[runtime.name], "--ipc", "host") if gpus else ()
    flags = [*hardware, *shlex.split(os.environ.get("ASSAY_CONTAINER_RUN_FLAGS", ""))]
    named = [part for variable in environment for part in ("--env", variable)]
    try:
        id_ = runtime.call(
            "run", "--detach", "--name", name, *CAREFUL, *flags, *named, image, *arguments,
            env={**os.environ, **environment},
        )  # fmt: skip
        yield Container(runtime, id_)
    finally:
        with suppress(BuildError):  # it never came to be
            runtime.call("rm", "--force", "--volumes", name)
        if known != runtime.images():  # else somebody has it here under a name
            runtime.call("rmi", "--force", image)
