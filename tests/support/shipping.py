"""What a release begins with: a small verified image, its documents, and a registry to push to."""

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any

import httpx2
import pytest

from pipeline import oci, paths
from pipeline.oci import Entry, Layout
from pipeline.records import Check, Verification
from pipeline.registry.address import Address

WEIGHTS_BYTES = 3 * 2**20


def make_image(*, code: bytes = b"v1", version: str = "1.0") -> str:
    """Write image/, report/ and a green verification.json below the working directory; return the digest."""
    weights = Path("weights.bin")
    if not weights.exists():
        weights.write_bytes(Random(0).randbytes(WEIGHTS_BYTES))
    shutil.rmtree(paths.IMAGE, ignore_errors=True)
    layout = Layout.create(paths.IMAGE / "layout")
    layers = [
        layout.add_layer([Entry(path=PurePosixPath("/artifact/weights.bin"), content=weights)]),
        layout.add_layer([Entry(path=PurePosixPath("/opt/code"), content=code)]),
    ]
    rootfs = {"type": "layers", "diff_ids": [layer.digest for layer in layers]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    digest = layout.finish(config, layers, {"org.opencontainers.image.version": version})
    (paths.IMAGE / "sbom.cdx.json").write_text('{"bomFormat": "CycloneDX"}')
    (paths.IMAGE / "provenance.json").write_text('{"_type": "https://in-toto.io/Statement/v1"}')
    paths.REPORT.parent.mkdir(exist_ok=True)
    paths.REPORT.write_text("# Report\n")
    paths.PAGE.write_text("<!doctype html><title>Report</title>")
    passed = Check(name="ready", passed=True, found="200", expected="200")
    Verification(image=digest, checks=(passed,)).save(paths.VERIFICATION)
    return digest


def referrers(repository: str, digest: str) -> list[Any]:
    """List what is attached to an image as the specification tells clients to: by the API, else by the tag."""
    address = Address.parse(repository)
    found = httpx2.get(f"{address.origin}{address.api}/referrers/{digest}", trust_env=False)
    if found.status_code == 404:
        accept = {"Accept": oci.INDEX}
        tag = digest.replace(":", "-")
        found = httpx2.get(f"{address.origin}{address.api}/manifests/{tag}", headers=accept, trust_env=False)
    return list(found.raise_for_status().json()["manifests"])


@contextmanager
def docker_registry(folder: Path, htpasswd: Path | None = None) -> Iterator[str]:
    """Run Debian's docker-registry on loopback; give its host and port."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    settings = folder / "registry.yml"
    auth = f"auth:\n  htpasswd: {{realm: test, path: {htpasswd}}}\n" if htpasswd else ""
    settings.write_text(
        f"version: 0.1\nlog: {{accesslog: {{disabled: true}}, level: error}}\n"
        f"storage:\n  filesystem: {{rootdirectory: {folder / 'store'}}}\nhttp: {{addr: '{host}'}}\n{auth}"
    )
    with subprocess.Popen([program, "serve", settings], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        try:
            _await(f"http://{host}/v2/")
            yield host
        finally:
            child.terminate()


def _await(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.05)
