"""Releases into Debian's docker-registry, looked at with skopeo."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import paths
from pipeline.commands import channel
from pipeline.commands.release import release
from pipeline.errors import ParamsError, RegistryError
from pipeline.oci import Layout
from pipeline.records import Release
from pipeline.registry import upload
from pipeline.registry.address import Address
from pipeline.registry.client import Manifest, Repository
from pipeline.registry.session import Session
from tests.support import shipping
from tests.support.shipping import make_image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with shipping.docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def repository(host: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty repository, and a workspace to release from, without anyone's credentials."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("COSIGN_KEY", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return f"{host}/team/{request.node.originalname.lower()[:80]}"


def look_up(repository: str, reference: str) -> Manifest | None:
    with Session(Address.parse(repository)) as session:
        return Repository(session).manifest(reference)


def digest_of(repository: str, reference: str) -> str | None:
    found = look_up(repository, reference)
    return found.descriptor.digest if found else None


def test_a_pulled_image_is_the_layout(repository: str, tmp_path: Path) -> None:
    digest = make_image()
    released = release(repository)
    assert (released.digest, released.tag, released.signed) == (digest, "1.0", False)
    assert Release.load(paths.RELEASE) == released
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed (apt-get install skopeo)")
    source = [f"docker://{repository}:1.0", f"oci:{tmp_path / 'pulled'}:1.0"]
    subprocess.run(
        [skopeo, "--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false", *source],
        check=True,
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
    )
    pulled, layout = Layout.open(tmp_path / "pulled"), Layout.open(paths.IMAGE / "layout")
    assert pulled.image.digest == digest
    for blob in (layout.image, *layout.blobs):
        assert pulled.path(blob.digest).read_bytes() == layout.path(blob.digest).read_bytes()


def test_a_second_release_of_the_same_sends_no_blob(repository: str) -> None:
    make_image()
    first = release(repository)
    second = release(repository)
    assert second.bytes_sent == 0
    assert second.bytes_skipped >= first.bytes_sent
    assert second.model_copy(update={"bytes_sent": 0, "bytes_skipped": 0}) == first.model_copy(
        update={"bytes_sent": 0, "bytes_skipped": 0}
    )


def test_a_change_of_code_sends_at_most_a_twentieth(repository: str) -> None:
    make_image(version="1.0")
    release(repository)
    make_image(version="1.1", code=b"v2")
    second = release(repository)
    assert 0 < second.bytes_sent <= 0.05 * (second.bytes_sent + second.bytes_skipped)


def test_a_version_is_for_good(repository: str) -> None:
    first = make_image()
    release(repository)
    second = make_image(code=b"other")
    with pytest.raises(RegistryError, match="a released version does not change"):
        release(repository)
    assert digest_of(repository, "1.0") == first
    assert digest_of(repository, second) is None
    assert release(repository, "1.0.1").digest == digest_of(repository, "1.0.1") == second


def test_documents_are_found_from_the_images_digest(repository: str) -> None:
    digest = make_image()
    released = release(repository)
    with Session(Address.parse(repository)) as session:
        client = Repository(session)
        first = client.manifest(released.referrers[0].digest)
    listed = shipping.referrers(repository, digest)
    assert [(one["artifactType"], one["digest"]) for one in listed] == [
        (one.artifact_type, one.digest) for one in released.referrers
    ]
    assert [one.artifact_type for one in released.referrers] == [
        *("application/vnd.cyclonedx+json", "application/vnd.in-toto+json", "text/markdown", "text/html")
    ]
    assert first is not None
    assert first.content["subject"]["digest"] == digest
    assert digest_of(repository, digest.replace(":", "-")) is not None


def test_a_killed_push_goes_on_where_it_was(repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed as the second chunk of the weights begins: the first is not sent again."""
    make_image()
    chunk = 2**20
    program = (
        "import os, signal, time\n"
        "from pipeline.commands.release import release\n"
        "from pipeline.registry import upload\n"
        f"upload.CHUNK_BYTES = {chunk}\n"
        "read = upload._read\n"
        "def killed(path, start, end):\n"
        "    if start:\n"
        f"        os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "    return read(path, start, end)\n"
        "upload._read = killed\n"
        f"release({repository!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert digest_of(repository, "1.0") is None
    monkeypatch.setattr(upload, "CHUNK_BYTES", chunk)
    whole = sum(blob.size for blob in Layout.open(paths.IMAGE / "layout").blobs)
    second = release(repository)
    assert whole - chunk <= second.bytes_sent < whole
    assert digest_of(repository, "1.0") == second.digest


def test_an_unverified_image_stays_here(repository: str) -> None:
    make_image()
    verified = json.loads(paths.VERIFICATION.read_text())
    for change, message in (
        ({"image": "sha256:" + "0" * 64}, "run `dvc repro`"),
        ({"checks": []}, "no check ran"),
        ({"checks": [verified["checks"][0] | {"passed": False, "found": "503"}]}, "ready: 503, expected 200"),
    ):
        paths.VERIFICATION.write_text(json.dumps(verified | change))
        with pytest.raises(RegistryError, match=message):
            release(repository)
    paths.IMAGE.rename("elsewhere")
    paths.VERIFICATION.write_text(json.dumps({"image": None, "unavailable": "no builder"}))
    with pytest.raises(RegistryError, match="no builder"):
        release(repository)
    assert digest_of(repository, "1.0") is None


def test_promote_and_roll_back(repository: str) -> None:
    released = []
    for version in ("1.0", "1.1", "1.2"):
        make_image(version=version)
        released.append(release(repository).digest)
    for digest in released:
        channel.promote(repository, digest, "stable")
        assert digest_of(repository, "stable") == digest
    for digest in released[1::-1]:
        channel.rollback(repository, "stable")
        assert digest_of(repository, "stable") == digest
    with pytest.raises(RegistryError, match="no image before"):
        channel.rollback(repository, "stable")
    moves = channel.history(repository, "stable")
    assert [move.kind for move in moves] == [channel.PROMOTED] * 3 + [channel.ROLLED_BACK] * 2
    assert [move.image.annotations["org.opencontainers.image.version"] for move in moves] == [
        *("1.0", "1.1", "1.2", "1.1", "1.0")
    ]


def test_rollback_knows_moves_by_other_tools(repository: str) -> None:
    released = []
    for version in ("1.0", "1.1"):
        make_image(version=version)
        released.append(release(repository).digest)
    channel.promote(repository, released[0], "stable")
    moved = look_up(repository, "1.1")
    assert moved is not None
    with Session(Address.parse(repository)) as session:
        Repository(session).push_manifest(moved.data, moved.descriptor.media_type, "stable")
    channel.rollback(repository, "stable")
    assert digest_of(repository, "stable") == released[0]
    kinds = [move.kind for move in channel.history(repository, "stable")]
    assert kinds == [channel.PROMOTED, channel.FOUND, channel.ROLLED_BACK]


def test_only_what_is_released_is_promoted(repository: str) -> None:
    digest = make_image(version="1.0+g12")
    with pytest.raises(RegistryError, match="assay release"):
        channel.promote(repository, digest, "stable")
    release(repository)
    with pytest.raises(ParamsError, match="released version"):
        channel.promote(repository, digest, "1.0-g12")
    with pytest.raises(ParamsError, match="no digest"):
        channel.promote(repository, "1.0", "stable")


def test_a_registry_with_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    htpasswd = shutil.which("htpasswd")
    if htpasswd is None:
        pytest.skip("htpasswd is not installed (apt-get install apache2-utils)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    subprocess.run([htpasswd, "-cbB", "users", "ci", "s3cret"], check=True, capture_output=True)
    make_image()
    with shipping.docker_registry(tmp_path, tmp_path / "users") as host:
        with pytest.raises(RegistryError, match=f"podman login {host}"):
            release(f"{host}/team/model")
        monkeypatch.setenv("ASSAY_REGISTRY_USER", "ci")
        monkeypatch.setenv("ASSAY_REGISTRY_PASSWORD", "wr0ng")
        with pytest.raises(RegistryError, match="does not take the credentials of ASSAY_REGISTRY_USER") as caught:
            release(f"{host}/team/model")
        assert "wr0ng" not in str(caught.value)
        monkeypatch.setenv("ASSAY_REGISTRY_PASSWORD", "s3cret")
        assert release(f"{host}/team/model").bytes_sent > 0
    assert not any(b"s3cret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
