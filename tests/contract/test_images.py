"""Images with the real tools: a registry that is asked for digests, a base of Debian packages, a served artifact."""

import http.client
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from pipeline import oci
from pipeline.backends.gguf.backend import Gguf
from pipeline.errors import RegistryError, RequirementError
from pipeline.images import assemble, bases, builders, checks, container, engine, lookup, manifest
from pipeline.images.container import Container
from pipeline.images.manifest import ROOT
from pipeline.oci import Entry, Layout
from pipeline.registry.address import Address
from pipeline.registry.client import Repository
from pipeline.registry.session import Session
from pipeline.toolchains.llama_cpp import compiler
from tests.support import demo, shipping

KEY = "a-key-of-the-test"


def test_digests_are_looked_up_in_the_registry_and_what_is_not_there_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shipping.docker_registry(tmp_path) as host:
        layout = Layout.create(tmp_path / "base")
        layer = layout.add_layer([Entry(path=PurePosixPath("/file"), content=b"x")])
        rootfs = {"type": "layers", "diff_ids": [layer.digest]}
        digest = layout.finish({"architecture": "amd64", "os": "linux", "rootfs": rootfs}, [layer], {})
        with Session(Address.parse(f"{host}/team/python")) as session:
            repository = Repository(session)
            for blob in layout.blobs:
                repository.push_blob(layout.path(blob.digest), blob)
            repository.push_manifest(layout.read(layout.image), oci.MANIFEST, "3.13")
        path = tmp_path / "images.toml"
        path.write_text(
            f'[runtime]\nimage = "{host}/team/python:3.13"\npython = "3.13"\n'
            f'[build]\nimage = "{host}/team/gcc:14"\npython = "3.13"\n'
            '[debootstrap]\nsuite = "trixie"\nruntime = []\nbuild = []\nsuites = {}\n'
        )
        monkeypatch.setattr(manifest, "PATH", path)
        monkeypatch.setattr(manifest.load, "__defaults__", (path,))
        monkeypatch.setattr(manifest.write_digest, "__defaults__", (path,))
        found, failed = lookup.pin()
        assert found == {f"{host}/team/python:3.13": digest}
        assert list(failed) == [f"{host}/team/gcc:14"]
        images = manifest.load(path)
        assert (images.runtime.digest, images.build.digest) == (digest, None)
    with pytest.raises(RegistryError):
        lookup.digest(f"{host}/team/python:3.13")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """An image with the demo's Q8_0, on whatever base is here."""
    try:
        builder = builders.find()
        container.find()
        found = bases.of_engine("llama_cpp", None, lookup.digest, builder.python)
    except RequirementError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("image")
    artifact = demo.gguf(folder, Gguf(backend="gguf", quantization="Q8_0"))
    built = Layout.open(engine.build("llama_cpp", builder, found) / "layout")
    record = folder / "quality.json"
    record.write_text('{"windows": 1}')
    layout, _ = assemble.assemble(built, artifact, ROOT, {"quality.json": record}, {}, {}, folder / "layout")
    return layout


@pytest.fixture(scope="module")
def running(image: Layout) -> Iterator[tuple[Container, int]]:
    port = 18931
    environment = {"ASSAY_HOST": "127.0.0.1", "ASSAY_PORT": str(port), "ASSAY_API_KEYS": f"test:{KEY}"}
    with container.started(image.root, environment) as started:
        deadline = time.monotonic() + 60
        while ask(port, "GET", "/health/ready")[0] != 200:
            assert started.running, started.last_lines
            assert time.monotonic() < deadline, started.last_lines
            time.sleep(0.1)
        yield started, port


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text.startswith(b"{") else {}
    except OSError:
        return 0, {}
    finally:
        connection.close()


def test_the_image_holds_no_tool_that_built_it(image: Layout) -> None:
    import tarfile

    found = set()
    for layer in image.layers:
        with tarfile.open(image.path(layer.digest)) as tar:
            found |= {f"/{member.name.removeprefix('./')}" for member in tar}
    assert {"/opt/llama.cpp/bin/llama-server", "/artifact/assay.json", "/evidence/quality.json"} <= found
    assert not {"/usr/bin/gcc", "/usr/bin/pip", "/usr/bin/pip3", "/usr/bin/apt-get", "/opt/python/pip"} & found
    kernels = {f"/opt/llama.cpp/bin/libggml-cpu-{name}.so" for name in compiler.kernels()}
    assert kernels | {"/opt/llama.cpp/bin/libgomp.so.1"} <= found
    assert not any(name.startswith(("/code", "/opt/llama.cpp/bin/llama-quantize")) for name in found)
    assert not any(name.startswith(("/wheelhouse", "/etc/apt/sources.list")) and name[-1] != "/" for name in found)
    assert os.environ.get("PIP_FIND_LINKS", "nothing") not in image.path(image.image.digest).read_text()


def test_the_image_serves_scores_and_tells_its_evidence(running: tuple[Container, int]) -> None:
    started, port = running
    assert started.user_id == 10001
    status, answer = ask(port, "POST", "/v1/completions", {"prompt": "def f(self", "max_tokens": 4, "temperature": 0})
    assert status == 200, answer
    status, answer = ask(
        port, "POST", "/v1/completions", {"prompt": "def f(self", "max_tokens": 1, "echo": True, "logprobs": 1}
    )
    assert status == 200, answer
    assert ask(port, "GET", "/evidence")[1]["quality"] == {"windows": 1}


def test_the_kernels_of_the_image_are_tried_on_this_processor(running: tuple[Container, int]) -> None:
    found = checks.kernels(running[0])
    assert found.passed, found.found
    assert found.found.startswith("every weight type on ")


def test_the_image_ends_well_when_asked_to(running: tuple[Container, int]) -> None:
    started, _ = running
    started.terminate()
    assert started.wait(30) == 0
