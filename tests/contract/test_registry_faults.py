"""What registries and lines do beside what they should, by a registry whose faults can be chosen."""

import base64
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline import paths
from pipeline.commands import channel
from pipeline.commands.release import release
from pipeline.errors import ParamsError, RegistryError
from pipeline.oci import Layout
from pipeline.registry import session, upload
from pipeline.registry.address import Address
from pipeline.registry.client import Repository
from pipeline.registry.session import Session
from tests.support import registry_server, shipping
from tests.support.registry_server import Fault, Registry
from tests.support.shipping import make_image

MIB = 2**20


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry, a workspace to release from, no one's credentials, and no long pauses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("COSIGN_KEY", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(session, "WAITS_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(upload, "CHUNK_BYTES", MIB)
    make_image()
    with registry_server.serve() as running:
        yield running


def pushed(registry: Registry) -> bool:
    """Whether tag, manifest and every blob of the layout are there, whole."""
    layout = Layout.open(paths.IMAGE / "layout")
    blobs = all(registry.blobs.get(blob.digest) == layout.path(blob.digest).read_bytes() for blob in layout.blobs)
    return blobs and registry.tags.get("1.0") == layout.image.digest in registry.manifests


def test_a_line_that_breaks_in_a_chunk_costs_only_what_did_not_arrive(registry: Registry) -> None:
    registry.faults = [Fault("PATCH .*state=1048576", cut_after=600_000), Fault("PATCH .*state=1648576", cut_after=0)]
    release(f"{registry.host}/team/model")
    assert pushed(registry)
    starts = [one.headers["Content-Range"] for one in registry.seen if one.line.startswith("PATCH")]
    assert [start.partition("-")[0] for start in starts[:4]] == ["0", "1048576", "1648576", "1648576"]


def test_a_registry_without_chunks_gets_whole_blobs(registry: Registry) -> None:
    registry.takes_chunks = False
    release(f"{registry.host}/team/model")
    assert pushed(registry)


def test_a_line_that_always_breaks_is_an_error_and_no_tag(registry: Registry) -> None:
    registry.faults = [Fault("PATCH .*state=1048576", times=99, cut_after=0)]
    with pytest.raises(RegistryError, match=r"the connection failed.*run again"):
        release(f"{registry.host}/team/model")
    assert registry.tags == {}
    registry.faults = []
    released = release(f"{registry.host}/team/model")
    assert pushed(registry)
    assert released.bytes_sent < sum(blob.size for blob in Layout.open(paths.IMAGE / "layout").blobs) - MIB + 1000


@pytest.mark.parametrize(
    "request_line", ["POST .*uploads", "PATCH", "PUT .*uploads", "PUT .*manifests", "HEAD .*blobs"]
)
def test_an_answer_that_is_lost_does_no_harm(registry: Registry, request_line: str) -> None:
    registry.faults = [Fault(request_line, cut_answer=True)]
    release(f"{registry.host}/team/model")
    assert pushed(registry)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_trouble_that_passes_is_waited_for(registry: Registry, status: int) -> None:
    registry.faults = [
        Fault("PATCH", status=status, headers={"Retry-After": "0"}),
        Fault("PUT .*manifests", status=status, times=2),
    ]
    release(f"{registry.host}/team/model")
    assert pushed(registry)


def test_a_registry_that_asks_for_an_hour_gets_none(registry: Registry) -> None:
    registry.faults = [Fault("HEAD", status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(RegistryError, match="429"):
        release(f"{registry.host}/team/model")


def test_what_is_refused_is_told_in_the_registrys_words_and_not_tagged(registry: Registry) -> None:
    for fault, words in (
        (Fault("POST .*uploads", status=403, code="DENIED"), "DENIED.*no push"),
        (Fault("POST .*uploads", status=404, code="NAME_UNKNOWN"), "created there first"),
        (Fault("PATCH", status=413), "limits the size"),
        (Fault("PUT .*manifests", status=400, code="MANIFEST_INVALID"), "MANIFEST_INVALID: a fault"),
    ):
        registry.faults = [fault]
        with pytest.raises(RegistryError, match=words):
            release(f"{registry.host}/team/model")
        assert registry.tags == {}


def test_a_refused_blob_is_sent_anew_by_the_next_run(registry: Registry) -> None:
    registry.faults = [Fault("PUT .*uploads", status=400, code="DIGEST_INVALID", times=2)]
    with pytest.raises(RegistryError, match="DIGEST_INVALID"):
        release(f"{registry.host}/team/model")
    release(f"{registry.host}/team/model")
    assert pushed(registry)


def test_a_registry_that_is_down(registry: Registry) -> None:
    with registry_server.serve() as gone:
        host = gone.host
    with pytest.raises(RegistryError, match=r"the connection failed.*run again"):
        release(f"{host}/team/model")


def test_referrers_are_listed_by_a_registry_that_can(registry: Registry) -> None:
    released = release(f"{registry.host}/team/model")
    assert set(registry.tags) == {"1.0"}
    listed = shipping.referrers(f"{registry.host}/team/model", released.digest)
    assert {one["digest"] for one in listed} == {one.digest for one in released.referrers}


def test_others_referrers_stay_in_the_tag(registry: Registry) -> None:
    registry.lists_referrers = False
    digest = release(f"{registry.host}/team/model").digest
    before = registry.manifests[registry.tags[digest.replace(":", "-")]]
    other = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + "1" * 64, "size": 2}
    index = json.loads(before[1])
    with Session(Address.parse(f"{registry.host}/team/model")) as opened:
        data = json.dumps(index | {"manifests": [other, *index["manifests"]]}).encode()
        Repository(opened).push_manifest(data, before[0], digest.replace(":", "-"))
    paths.REPORT.write_text("# A new report\n")
    release(f"{registry.host}/team/model")
    listed = shipping.referrers(f"{registry.host}/team/model", digest)
    assert listed[0] == other
    assert len(listed) == 1 + len(index["manifests"]) + 1  # another's, the first release's, the new report


def test_tokens_are_fetched_with_the_users_password(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.user = ("ci", "s3cret")
    with pytest.raises(RegistryError, match=r"gave no token.*no credentials for it were found"):
        release(f"{registry.host}/team/model")
    monkeypatch.setenv("ASSAY_REGISTRY_USER", "ci")
    monkeypatch.setenv("ASSAY_REGISTRY_PASSWORD", "wr0ng")
    with pytest.raises(RegistryError, match="does not take the credentials"):
        release(f"{registry.host}/team/model")
    monkeypatch.setenv("ASSAY_REGISTRY_PASSWORD", "s3cret")
    release(f"{registry.host}/team/model")
    assert pushed(registry)
    assert not any("s3cret" in one.line for one in registry.seen)


def test_credentials_do_not_follow_a_session_to_another_host(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.user, registry.uploads_elsewhere = ("ci", "s3cret"), True
    monkeypatch.setenv("ASSAY_REGISTRY_USER", "ci")
    monkeypatch.setenv("ASSAY_REGISTRY_PASSWORD", "s3cret")
    release(f"{registry.host}/team/model")
    assert pushed(registry)
    elsewhere = [one for one in registry.seen if one.headers["Host"].startswith("localhost")]
    assert elsewhere
    assert not any("Authorization" in one.headers for one in elsewhere)


def test_auth_files_and_helpers(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.user, registry.refresh_token = ("ci", "s3cret"), "refresh"
    auth = base64.b64encode(b"ci:s3cret").decode()
    wrong = base64.b64encode(b"ci:wr0ng").decode()
    helper = tmp_path / "bin" / "docker-credential-vault"
    helper.parent.mkdir()
    helper.write_text(
        f'#!/bin/sh\nread name\n[ "$name" = "{registry.host}" ] || {{ echo "credentials not found"; exit 1; }}\n'
        'echo \'{"ServerURL": "x", "Username": "ci", "Secret": "s3cret"}\'\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:/usr/bin:/bin")
    docker, podman = tmp_path / "home" / ".docker" / "config.json", tmp_path / "run" / "containers" / "auth.json"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    for file, content in (
        (docker, {"auths": {registry.host: {"auth": auth}}}),
        (docker, {"auths": {registry.host: {"identitytoken": "refresh"}}}),
        (docker, {"credHelpers": {registry.host: "vault"}}),
        (docker, {"auths": {registry.host: {}}, "credsStore": "vault"}),
        (podman, {"auths": {f"{registry.host}/team": {"auth": auth}, registry.host: {"auth": wrong}}}),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
        release(f"{registry.host}/team/model")
        file.unlink()
    with pytest.raises(RegistryError, match="no credentials"):
        release(f"{registry.host}/team/model")
    docker.write_text("not json s3cret")
    with pytest.raises(RegistryError, match="no auth file") as caught:
        release(f"{registry.host}/team/model")
    assert "s3cret" not in str(caught.value)


COSIGN = """#!/bin/sh
echo "$@" >> {log}
if [ "$1" = signing-config ]; then echo '{{}}' > "$4"; exit 0; fi
[ -f "$6" ] || exit 3
[ -n "$COSIGN_PASSWORD" ] || {{ echo "no password for the key"; exit 4; }}
cp "$DOCKER_CONFIG/config.json" {log}.auth
"""


def test_cosign_signs_the_digest_before_the_tag_is_put(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line is cosign 3's (doc/cosign_sign.md); a real cosign is not on every machine."""
    cosign, log = tmp_path / "bin" / "cosign", tmp_path / "cosign.log"
    cosign.parent.mkdir()
    cosign.write_text(COSIGN.format(log=log))
    cosign.chmod(0o755)
    monkeypatch.setenv("PATH", f"{cosign.parent}:/usr/bin:/bin")
    monkeypatch.setenv("COSIGN_KEY", "cosign.key")
    monkeypatch.delenv("COSIGN_PASSWORD", raising=False)
    monkeypatch.setenv("ASSAY_REGISTRY_USER", "ci")
    monkeypatch.setenv("ASSAY_REGISTRY_PASSWORD", "s3cret")
    with pytest.raises(RegistryError, match="no password for the key"):
        release(f"{registry.host}/team/model")
    assert registry.tags == {}
    monkeypatch.setenv("COSIGN_PASSWORD", "p")
    released = release(f"{registry.host}/team/model")
    assert released.signed
    signing = log.read_text().splitlines()[-1].split()
    assert signing[:4] == ["sign", "--yes", "--key", "cosign.key"]
    assert signing[-2:] == ["--allow-http-registry", f"{registry.host}/team/model@{released.digest}"]
    assert "s3cret" not in log.read_text()
    held = json.loads(log.with_suffix(".log.auth").read_text())["auths"][registry.host]["auth"]
    assert base64.b64decode(held) == b"ci:s3cret"
    count = len(log.read_text().splitlines())
    assert release(f"{registry.host}/team/model").signed
    assert len(log.read_text().splitlines()) == count


def test_a_promotion_that_broke_off_is_known_to_the_next_command(registry: Registry) -> None:
    where = f"{registry.host}/team/model"
    first = release(where).digest
    second_image = make_image(version="1.1", code=b"v2")
    second = release(where).digest
    assert second == second_image
    channel.promote(where, first, "stable")
    registry.faults = [Fault("PUT .*manifests/stable.history", status=400)]
    with pytest.raises(RegistryError):
        channel.promote(where, second, "stable")
    assert registry.tags["stable"] == second
    channel.rollback(where, "stable")
    assert registry.tags["stable"] == first


def test_a_rollback_that_broke_off_can_be_repeated(registry: Registry) -> None:
    where = f"{registry.host}/team/model"
    digests = []
    for version in ("1.0", "1.1", "1.2"):
        make_image(version=version)
        digests.append(release(where).digest)
        channel.promote(where, digests[-1], "stable")
    registry.faults = [Fault("PUT .*manifests/stable$", status=400)]
    with pytest.raises(RegistryError):
        channel.rollback(where, "stable")
    assert registry.tags["stable"] == digests[2]
    channel.rollback(where, "stable")
    assert registry.tags["stable"] == digests[1]
    channel.rollback(where, "stable")
    assert registry.tags["stable"] == digests[0]


def test_a_certificate_of_no_known_authority(registry: Registry, tmp_path: Path) -> None:
    pair: list[str | Path] = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    try:
        subprocess.run([*made, *pair, *subject], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with pytest.raises(RegistryError, match=r"certificate cannot be trusted.*SSL_CERT_FILE"):
            release(f"https://localhost:{server.server_address[1]}/team/model")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(RegistryError, match="no TLS connection"):
        release(f"https://{registry.host}/team/model")


@pytest.mark.parametrize(
    "text",
    ["registry.example.com", "registry.example.com/Team", "r.example.com/a:1", "http://r.example.com/a", "a b/c"],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ParamsError):
        Address.parse(text)


def test_plain_http_is_for_this_machine_alone() -> None:
    assert Address.parse("registry.example.com/a/b").origin == "https://registry.example.com"
    assert Address.parse("localhost:5000/a").origin == "http://localhost:5000"
    assert Address.parse("[::1]:5000/a").origin == "http://[::1]:5000"
    assert Address.parse("https://localhost:5000/a").origin == "https://localhost:5000"
    assert Address.parse("docker.io/team/model").origin == "https://registry-1.docker.io"
