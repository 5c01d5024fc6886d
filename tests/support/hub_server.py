"""A Hub on loopback: the endpoints that the real client speaks to, with faults that can be put in.

Large files are served as the Hub serves them: the Hub answers with a redirect to another host (here `localhost` where
the Hub is `127.0.0.1`), which must never see the token.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from tests.support import hub_uploads
from tests.support.hub_uploads import LARGE_BYTES

Tree = dict[str, bytes]


@dataclass
class Repository:
    """Branches, commits and who may read them."""

    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    token: str | None = None
    """Needed to see the repository at all, when set."""

    def push(self, tree: Tree, branch: str = "main") -> str:
        """Make a commit of these files and move the branch to it."""
        commit = hashlib.sha1(json.dumps([[n, hashlib.sha1(b).hexdigest()] for n, b in tree.items()]).encode())
        self.commits[commit.hexdigest()] = dict(tree)
        self.branches[branch] = commit.hexdigest()
        return commit.hexdigest()


@dataclass
class Fault:
    """What goes wrong with the next requests that match."""

    pattern: str
    """Searched for in "METHOD path"."""
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    """Send so many bytes of the body, then cut the line."""
    stall_after: int | None = None
    """Send so many bytes of the body, then nothing until the server stops."""
    flip: bool = False
    """Send a body with one wrong bit."""


@dataclass
class Seen:
    """A request as it came in."""

    method: str
    host: str
    path: str
    headers: dict[str, str]


@dataclass
class Hub:
    """The server's state; tests change it while it runs."""

    port: int = 0
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    ranges: bool = True
    token: str | None = None
    """Needed to write anything, when set."""
    uploaded: dict[str, bytes] = field(default_factory=dict)
    """Blobs by their sha256, in a commit or not."""
    xet: bool = False
    """Offer every large file through Xet as well."""
    before: Callable[[str], None] = lambda _: None
    """Called with "METHOD path" before each request is answered."""
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    open_bodies: int = 0
    most_open_bodies: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, name: str, tree: Tree, kind: Literal["model", "dataset"] = "model") -> Repository:
        repository = Repository()
        repository.push(tree)
        self.repositories[kind, name] = repository
        return repository

    def paths(self, pattern: str) -> list[str]:
        """Return "METHOD path" of the requests so far that match."""
        return [f"{s.method} {s.path}" for s in self.seen if re.search(pattern, f"{s.method} {s.path}")]

    def fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None

    def blob(self, sha256: str) -> bytes | None:
        for repository in self.repositories.values():
            for tree in repository.commits.values():
                for content in tree.values():
                    if hashlib.sha256(content).hexdigest() == sha256:
                        return content
        return None


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Stay silent; tests look at what was seen."""

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _content(self) -> bytes:
        """Read a request's body, of a known length or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        host = self.headers.get("Host", "").partition(":")[0]
        seen = Seen(self.command, host, path, {k.lower(): v for k, v in self.headers.items()})
        self.hub.seen.append(seen)
        self.hub.before(line)
        content = self._content()
        fault = self.hub.fault(line)
        if fault is not None and fault.status is not None:
            self._send(fault.status, b'{"error": "as ordered"}', fault.headers)
        elif self.command in ("POST", "PUT"):
            status, reply = hub_uploads.answer(self.hub, path, seen.headers, content)
            self._send(status, json.dumps(reply).encode())
        elif found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/revision/(.+)", path):
            self._listing(found[1], found[2], found[3])
        elif found := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
            blob = self.hub.blob(found[1])
            assert blob is not None
            self._body(blob, {"ETag": f'"{found[1]}"'}, fault)
        elif found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve("dataset" if found[1] else "model", found[2], found[3], found[4], fault)
        else:
            self._send(404, b"{}")

    def _repository(self, kind: str, name: str) -> Repository | None:
        """Find a repository as the Hub does: what may not be seen does not exist, and without a login that is a 401."""
        repository = self.hub.repositories.get((kind, name))
        given = self.headers.get("Authorization")
        if repository is not None and repository.token and given != f"Bearer {repository.token}":
            repository = None
        if repository is None:
            status = 401 if given is None or "wrong" in given else 404
            self._send(status, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        return repository

    def _commit(self, repository: Repository, revision: str) -> str | None:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._send(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def _listing(self, kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name)
        commit = self._commit(repository, revision) if repository else None
        if repository is None or commit is None:
            return
        siblings: list[dict[str, Any]] = []
        for path, content in repository.commits[commit].items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": git_blob(content)}
            if len(content) >= LARGE_BYTES:
                entry["lfs"] = {
                    "size": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "pointerSize": 134,
                }
            siblings.append(entry)
        self._send(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode())

    def _resolve(self, kind: str, name: str, revision: str, path: str, fault: Fault | None) -> None:
        repository = self._repository(kind, name)
        if repository is None:
            return
        if repository.gated:
            self._send(403, b'{"error": "Access to model is restricted"}', {"X-Error-Code": "GatedRepo"})
            return
        commit = self._commit(repository, revision)
        if commit is None:
            return
        content = repository.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._send(404, b'{"error": "Entry not found"}', {**headers, "X-Error-Code": "EntryNotFound"})
        elif len(content) >= LARGE_BYTES:
            sha256 = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
            headers["Location"] = f"http://localhost:{self.hub.port}/cdn/{sha256}?signature=secret"
            if self.hub.xet:
                refresh = f"{self.hub.endpoint}/api/models/{name}/xet-read-token/{commit}"
                headers |= {"X-Xet-Hash": sha256, "X-Xet-Refresh-Route": refresh}
            self._send(302, b"", headers)
        else:
            self._body(content, {**headers, "ETag": f'"{git_blob(content)}"'}, fault)

    def _body(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        status, start = 200, 0
        asked, end = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")), len(content)
        if asked and self.hub.ranges:
            status, start, end = 206, int(asked[1]), min(end, int(asked[2] or end) + 1)
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        body = content[start:end]
        if fault is not None and fault.flip:
            body = body[:-1] + bytes([body[-1] ^ 1])
        with self.hub.lock:
            self.hub.open_bodies += 1
            self.hub.most_open_bodies = max(self.hub.most_open_bodies, self.hub.open_bodies)
        try:
            self._send(status, body, headers, fault)
        finally:
            with self.hub.lock:
                self.hub.open_bodies -= 1

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = None if fault is None else fault.drop_after if fault.drop_after is not None else fault.stall_after
        self.wfile.write(body if cut is None else body[:cut])
        self.wfile.flush()
        if fault is not None and fault.stall_after is not None:
            self.hub.stopped.wait()
        if cut is not None:
            self.close_connection = True


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
