"""Signatures by cosign, whose formats and key stores are what verifiers know."""

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import processes
from pipeline.errors import BuildError, RegistryError
from pipeline.registry import credentials
from pipeline.registry.address import Address

KEY = "COSIGN_KEY"


def sign(address: Address, digest: str, key: str | None) -> str | None:
    """Sign an image that is in the registry; return why not, where there is no key or no cosign.

    `key` is what `cosign sign --key` takes: a file, or the address of a key in a key store; COSIGN_KEY stands in for
    it, and COSIGN_PASSWORD, which cosign reads itself, unlocks a file. The signature goes into the registry and not
    into the public transparency log, where names of private images do not belong: a signing configuration without
    services says so (cosign 2.6 and later; `--tlog-upload=false` is refused by 3). Verify it with
    `cosign verify --key cosign.pub --insecure-ignore-tlog=true`. Raises RegistryError with cosign's last lines.
    """
    key = key or os.environ.get(KEY)
    if key is None:
        return f"no key: give --key or set {KEY}"
    cosign = shutil.which("cosign")
    if cosign is None:
        return "cosign is not installed"
    insecure = ["--allow-http-registry"] if address.scheme == "http" else []
    with TemporaryDirectory(prefix="assay-cosign-") as folder:
        services = f"{folder}/signing-config.json"
        command = [cosign, "sign", "--yes", "--key", key, "--signing-config", services, *insecure]
        try:
            processes.run([cosign, "signing-config", "create", "--out", services], what="cosign signing-config create")
            processes.run(
                [*command, f"{address}@{digest}"], what="cosign sign", env=_environment(address, Path(folder))
            )
        except BuildError as error:
            raise RegistryError(f"{error}\nthe image is in the registry, but has no tag yet: run again") from error
    return None


def _environment(address: Address, folder: Path) -> dict[str, str]:
    """Hand over our credentials in an auth file that only this user can read: a command line is for all to see."""
    environment = dict(os.environ)
    for secret in (credentials.USER, credentials.PASSWORD):
        environment.pop(secret, None)
    found = credentials.find(address.host, address.repository)
    if found is not None:
        # TemporaryDirectory made the folder for this user alone.
        config = {"auths": {address.host: found.entry}}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        environment["DOCKER_CONFIG"] = str(folder)
    return environment
