"""Credentials for a registry, from where docker, podman and skopeo keep theirs.

They are looked up when a registry asks, are in no record, log or message, and are on no command line.
"""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import RegistryError

USER, PASSWORD = "ASSAY_REGISTRY_USER", "ASSAY_REGISTRY_PASSWORD"

DOCKER_HUB = "https://index.docker.io/v1/"
"""Docker's name for its own registry in its auth files."""

TOKEN_USER = "<token>"
"""What a credential helper gives as the user's name when the secret is an identity token."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password, or an identity token."""

    origin: str
    """Where they were found: what an error may tell."""
    user: str = field(repr=False)
    secret: str = field(repr=False)

    @property
    def is_identity_token(self) -> bool:
        """True when the secret is an OAuth2 refresh token, which only the registry's token server takes."""
        return self.user == TOKEN_USER

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.secret}".encode()).decode()

    @property
    def entry(self) -> dict[str, str]:
        """The form that auth files hold."""
        if self.is_identity_token:
            return {"identitytoken": self.secret}
        return {"auth": self.basic.removeprefix("Basic ")}


def find(host: str, repository: str) -> Credentials | None:
    """Return what the environment, else the first auth file that knows this registry, holds for it."""
    user, password = os.environ.get(USER), os.environ.get(PASSWORD)
    if user and password:
        return Credentials(USER, user, password)
    if user or password:
        raise RegistryError(f"only one of {USER} and {PASSWORD} is set; set both, or none to use the auth files")
    for file in _files():
        found = _in_file(file, host, repository)
        if found is not None:
            return found
    return None


def _files() -> Iterator[Path]:
    """Name the auth files that are there, podman's and skopeo's before docker's."""
    named = os.environ.get("REGISTRY_AUTH_FILE")
    if named:
        if not Path(named).is_file():
            raise RegistryError(f"REGISTRY_AUTH_FILE names {named}, which is not there; unset it or log in again")
        yield Path(named)
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    settings = os.environ.get("XDG_CONFIG_HOME")
    docker = os.environ.get("DOCKER_CONFIG")
    candidates = [Path(runtime) / "containers" / "auth.json"] if runtime else []
    candidates.append((Path(settings) if settings else Path.home() / ".config") / "containers" / "auth.json")
    candidates.append((Path(docker) if docker else Path.home() / ".docker") / "config.json")
    yield from (path for path in candidates if path.is_file())


def _in_file(file: Path, host: str, repository: str) -> Credentials | None:
    try:
        config = json.loads(file.read_bytes())
        names = _names(host, repository)
        helpers, auths = config.get("credHelpers") or {}, config.get("auths") or {}
        for name in names:
            if name in helpers:
                return _from_helper(helpers[name], name)
            if (found := _from_entry(auths.get(name) or {}, str(file))) is not None:
                return found
        store = config.get("credsStore")
        listed = next((name for name in names if name in auths), names[0] if len(names) == 1 else host)
        return _from_helper(store, listed) if store else None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        # Not the error's own text: it may quote the file.
        raise RegistryError(f"{file}: is no auth file of docker or podman ({type(error).__name__})") from None


def _names(host: str, repository: str) -> list[str]:
    """Names that an auth file may use for this registry, the most special first."""
    parts = repository.split("/")
    namespaces = [f"{host}/{'/'.join(parts[:end])}" for end in range(len(parts), 0, -1)]
    hub = [DOCKER_HUB] if host in ("docker.io", "registry-1.docker.io") else []
    return [*namespaces, host, f"https://{host}", f"http://{host}", *hub]


def _from_entry(entry: dict[str, Any], origin: str) -> Credentials | None:
    if token := entry.get("identitytoken"):
        return Credentials(origin, TOKEN_USER, token)
    if auth := entry.get("auth"):
        user, _, secret = base64.b64decode(auth, validate=True).decode().partition(":")
        return Credentials(origin, user, secret.rstrip("\0"))
    return None


def _from_helper(helper: str, name: str) -> Credentials | None:
    """Ask docker-credential-<helper>, which reads a registry's name and writes JSON (docker-credential-helpers)."""
    program = f"docker-credential-{helper}"
    try:
        answer = subprocess.run([program, "get"], input=name, capture_output=True, text=True, timeout=60, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        why = "is not installed" if isinstance(error, FileNotFoundError) else "did not answer within a minute"
        raise RegistryError(f"{program}, which the auth file names for {name}, {why}") from None
    if answer.returncode != 0:
        if "not found" in answer.stdout.lower():
            return None
        raise RegistryError(f"{program} exited with {answer.returncode} when asked for the credentials of {name}")
    found = json.loads(answer.stdout)
    return Credentials(program, found["Username"], found["Secret"])
