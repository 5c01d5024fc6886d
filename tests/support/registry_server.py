"""A registry on loopback, in memory, with what Debian's docker-registry lacks.

That is tokens, a list of referrers, sessions that keep every byte of a broken chunk, and faults that can be put in.
"""

import base64
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "a-token-of-the-fake-registry"


@dataclass
class Fault:
    """What goes wrong with the next requests that match."""

    pattern: str
    """Searched for in "METHOD path"."""
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    code: str = "UNKNOWN"
    cut_after: int | None = None
    """Take so many bytes of the body, then cut the line."""
    cut_answer: bool = False
    """Do what was asked, then cut the line instead of saying so."""


@dataclass
class Seen:
    """A request as it came in."""

    line: str
    headers: dict[str, str]


@dataclass
class Registry:
    """The server's state; tests change it while it runs."""

    port: int = 0
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """By digest: media type and bytes."""
    tags: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    lists_referrers: bool = True
    user: tuple[str, str] | None = None
    """Name and password that its token server wants, when set."""
    refresh_token: str | None = None
    takes_chunks: bool = True
    uploads_elsewhere: bool = False
    """Give sessions an address at another host (localhost for 127.0.0.1), as registries with a separate store do."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def lines(self, pattern: str) -> list[str]:
        """Return the requests that match."""
        return [one.line for one in self.seen if re.search(pattern, one.line)]


@contextmanager
def serve() -> Iterator[Registry]:
    """Run a registry until the block ends."""
    state = Registry()

    class Handler(_Handler):
        registry = state

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    registry: Registry
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815

    def _handle(self) -> None:
        line = f"{self.command} {self.path}"
        self.registry.seen.append(Seen(line, dict(self.headers)))
        fault = next((one for one in self.registry.faults if one.times and re.search(one.pattern, line)), None)
        self._cut_answer = False
        if fault is not None:
            fault.times -= 1
            self._cut_answer = fault.cut_answer
        body = self._body(fault.cut_after if fault else None)
        if body is None:
            return
        if fault is not None and fault.status is not None:
            self._answer(fault.status, {"errors": [{"code": fault.code, "message": "a fault"}]}, fault.headers)
        elif self.path.startswith("/token"):
            self._token(body)
        elif (
            self.registry.user and self.headers.get("Authorization") != f"Bearer {TOKEN}" and "state=" not in self.path
        ):
            realm = f"http://{self.registry.host}/token"
            challenge = f'Bearer realm="{realm}",service="fake",scope="repository:team/model:pull,push"'
            self._answer(401, {"errors": [{"code": "UNAUTHORIZED", "message": "no"}]}, {"WWW-Authenticate": challenge})
        else:
            self._dispatch(urlsplit(self.path).path, parse_qs(urlsplit(self.path).query), body)

    def _body(self, cut_after: int | None) -> bytes | None:
        """Read the body; None when the line was cut, after what came in was kept as a session keeps it."""
        length = int(self.headers.get("Content-Length", 0))
        if cut_after is None:
            return self.rfile.read(length)
        part = self.rfile.read(min(cut_after, length))
        if self.command == "PATCH":
            self.registry.uploads[urlsplit(self.path).path.rpartition("/")[2]] += part
        self._hang_up()
        return None

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def _token(self, body: bytes) -> None:
        form = parse_qs(body.decode())
        user = self.registry.user
        assert user is not None
        basic = "Basic " + base64.b64encode(":".join(user).encode()).decode()
        by_token = self.registry.refresh_token and form.get("refresh_token") == [self.registry.refresh_token]
        if self.headers.get("Authorization") == basic or by_token:
            self._answer(200, {"token": TOKEN} if not by_token else {"access_token": TOKEN})
        else:
            self._answer(401, {"details": "incorrect username or password"})

    def _dispatch(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        kind, _, rest = path.removeprefix("/v2/team/model/").partition("/")
        if kind == "manifests":
            self._manifest(rest, body)
        elif kind == "referrers" and self.registry.lists_referrers:
            found = [
                {"mediaType": media_type, "digest": digest, "size": len(data)}
                | {"artifactType": json.loads(data)["artifactType"]}
                for digest, (media_type, data) in self.registry.manifests.items()
                if (json.loads(data).get("subject") or {}).get("digest") == rest
            ]
            self._answer(200, {"schemaVersion": 2, "manifests": found})
        elif kind == "blobs" and rest.startswith("uploads"):
            self._upload(rest.removeprefix("uploads/"), query, body)
        elif kind == "blobs" and rest in self.registry.blobs:
            self._answer(200, self.registry.blobs[rest])
        else:
            self._answer(404, {"errors": [{"code": "NOT_FOUND", "message": "not here"}]})

    def _upload(self, session: str, query: dict[str, list[str]], body: bytes) -> None:
        uploads = self.registry.uploads
        if self.command == "POST":
            session = uuid.uuid4().hex
            uploads[session] = bytearray()
        if session not in uploads:
            self._answer(404, {"errors": [{"code": "BLOB_UPLOAD_UNKNOWN", "message": "no such session"}]})
            return
        kept = uploads[session]
        first = self.headers.get("Content-Range", f"{len(kept)}-").partition("-")[0]
        host = f"http://localhost:{self.registry.port}" if self.registry.uploads_elsewhere else ""
        where = {"Location": f"{host}/v2/team/model/blobs/uploads/{session}?state={len(kept) + len(body)}"}
        where["Range"] = f"0-{max(len(kept) + len(body) - 1, 0)}"
        if self.command == "PATCH" and kept and not self.registry.takes_chunks:
            self._answer(400, {"errors": [{"code": "UNSUPPORTED", "message": "chunked uploads are not supported"}]})
            return
        if int(first) != len(kept):
            self._answer(416, {"errors": [{"code": "BLOB_UPLOAD_INVALID", "message": "out of order"}]}, where)
            return
        kept += body
        if self.command == "PUT":
            (digest,) = query["digest"]
            if digest != f"sha256:{hashlib.sha256(kept).hexdigest()}":
                self._answer(400, {"errors": [{"code": "DIGEST_INVALID", "message": "wrong digest"}]})
                return
            self.registry.blobs[digest] = bytes(uploads.pop(session))
        self._answer({"PUT": 201, "GET": 204}.get(self.command, 202), b"", where)

    def _manifest(self, reference: str, body: bytes) -> None:
        manifests, tags = self.registry.manifests, self.registry.tags
        if self.command == "PUT":
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            manifests[digest] = (self.headers["Content-Type"], body)
            if not reference.startswith("sha256:"):
                tags[reference] = digest
            subject = json.loads(body).get("subject")
            named = {"OCI-Subject": subject["digest"]} if subject and self.registry.lists_referrers else {}
            self._answer(201, b"", {"Docker-Content-Digest": digest} | named)
            return
        digest = tags.get(reference, reference)
        if digest not in manifests:
            self._answer(404, {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "not here"}]})
            return
        media_type, data = manifests[digest]
        self._answer(200, data, {"Content-Type": media_type, "Docker-Content-Digest": digest})

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        if self._cut_answer:
            self._hang_up()
            return
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(data)
