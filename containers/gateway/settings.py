"""How a gateway is run: flags of its command, or environment variables ASSAY_*, which a container is set up by."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from pipeline.compute import Device
from pipeline.records import EngineName, Placement


class Settings(BaseSettings):
    """All there is to set."""

    model_config = SettingsConfigDict(
        env_prefix="ASSAY_", frozen=True, extra="forbid", cli_kebab_case=True, cli_prog_name="containers.gateway"
    )

    artifact: Path = Path("/artifact")
    """Folder of the artifact."""
    evidence: Path | None = None
    """Folder of records, served at /evidence."""
    model: str | None = None
    """Name that clients ask for; None is the artifact's."""
    host: str = "0.0.0.0"
    port: int = Field(default=8080, ge=0, le=65535)

    auth: Literal["keys", "none"] = "keys"
    """`none` lets everybody in: for loopback, or where something in front has checked already."""
    keys_file: Path | None = None
    """API keys, one a line, `name:key` or the key alone; # begins a comment."""
    api_keys: SecretStr | None = None
    """API keys, the same way, separated by commas."""
    public_health: bool = False
    """Let readiness probes in without a key; they learn ready or not, and nothing else. Liveness is always public."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """The limit of one key; None is no limit."""

    device: Device | None = None
    """What the engine computes on; None is GPUs where there are any."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the engine; None is every core."""
    engine: EngineName | None = None
    """Serve with this one or not at all: images set it to what was measured. None chooses by artifact and device."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share each layer, of vLLM."""
    gpu_memory_fraction: float = Field(default=0.9, gt=0, le=1)
    """The share of each GPU for vLLM's weights and cache together, or for TensorRT-LLM's cache of what its weights
    leave."""
    slots: int = Field(default=4, ge=1)
    """Requests that are answered at the same time."""
    context_tokens: int | None = Field(default=None, ge=16)
    """Prompt and answer of one request; None is the model's own, at most 4096: memory is set aside for each slot."""
    queue: int = Field(default=32, ge=0)
    """Requests that wait for a slot; one more gets 429."""
    request_bytes: int = Field(default=4 * 2**20, ge=1)
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    max_choices: int = Field(default=128, ge=1)
    """Answers that one request may ask for: prompts times n."""
    timeout_seconds: float = Field(default=600, gt=0)
    """The most that one request takes, its wait in the queue included."""
    drain_seconds: float = Field(default=30, ge=0)
    """After SIGTERM, for what is being answered to end."""
    stall_seconds: float = Field(default=120, gt=0)
    """An engine that gave no token for this long, with requests at work, hangs, and is started again."""

    tls_certificate: Path | None = None
    tls_key: Path | None = None
    log_prompts: bool = False
    """Write requests' text to the log."""

    @property
    def placement(self) -> Placement:
        """How the artifact is laid out on GPUs."""
        return Placement(tensor_parallel=self.tensor_parallel, gpu_memory_fraction=self.gpu_memory_fraction)

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("TLS needs both a certificate and a key")
        if self.auth == "keys" and self.keys_file is None and self.api_keys is None:
            raise ValueError("no API keys: give keys_file or api_keys, or say auth=none to let everybody in")
        return self


def vertex() -> dict[str, str]:
    """Return what Vertex AI asks a container for, by name: HTTP_PORT, HEALTH_ROUTE, PREDICT_ROUTE."""
    names = ("HTTP_PORT", "HEALTH_ROUTE", "PREDICT_ROUTE")
    return {name: os.environ[f"AIP_{name}"] for name in names if os.environ.get(f"AIP_{name}")}


def read(arguments: Sequence[str]) -> Settings:
    """Read flags and environment. ValidationError for what is wrong, ValueError for a secret that others can see."""
    if any(argument.startswith("--api-keys") for argument in arguments):
        raise ValueError("a command line is no place for API keys: give ASSAY_API_KEYS, or --keys-file")
    if port := vertex().get("HTTP_PORT"):
        os.environ["ASSAY_PORT"] = port
    return CliApp.run(Settings, list(arguments))


def problems(error: ValidationError) -> Iterator[str]:
    """Say in a line each what is wrong with the settings."""
    for problem in error.errors():
        name = ".".join(map(str, problem["loc"])) or "settings"
        yield f"{name}: {problem['msg'].removeprefix('Value error, ')}"
