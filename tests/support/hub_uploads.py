"""The endpoints of the Hub that an upload speaks to: blobs first, by LFS's batch API, then everything in one commit."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.hub_server import Hub, Repository

LARGE_BYTES = 4096
"""From here on a file is a large one: listed with its sha256, redirected, and uploaded by itself."""

Reply = tuple[int, dict[str, Any]]

OK: Reply = (200, {})


def answer(hub: "Hub", path: str, headers: Mapping[str, str], body: bytes) -> Reply:
    """Answer a request that writes. Blobs go to another host's address, which must not see the token."""
    if found := re.fullmatch(r"/upload/([0-9a-f]{64})", path):
        assert hashlib.sha256(body).hexdigest() == found[1]
        hub.uploaded[found[1]] = body
        return OK
    if hub.token is not None and headers.get("authorization") != f"Bearer {hub.token}":
        return 401, {"error": "Invalid credentials"}
    if path == "/api/repos/create":
        return _create(hub, json.loads(body))
    if path == "/api/validate-yaml":
        return 200, {"warnings": [], "errors": []}
    if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path):
        repository = hub.repositories.get(("model", found[1]))
        if repository is None:
            return 404, {"error": "Repository not found"}
        if found[2] == "preupload":
            return _preupload(repository, found[3], json.loads(body))
        if found[2] == "branch":
            repository.branches.setdefault(found[3], repository.branches["main"])
            return OK
        return _commit(hub, repository, found[1], found[3], body)
    if re.fullmatch(r"/([^/]+/[^/]+)[.]git/info/lfs/objects/batch", path):
        return _batch(hub, json.loads(body))
    return 404, {}


def _create(hub: "Hub", wanted: Mapping[str, Any]) -> Reply:
    name = f"{wanted['organization']}/{wanted['name']}"
    url = {"url": f"{hub.endpoint}/{name}"}
    if ("model", name) in hub.repositories:
        return 409, {"error": "You already created this model repo", **url}
    hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
    return 200, url


def _preupload(repository: "Repository", branch: str, wanted: Mapping[str, Any]) -> Reply:
    tree = repository.commits[repository.branches[branch]]
    modes = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["size"] >= LARGE_BYTES else "regular",
            "shouldIgnore": False,
            "oid": _oid(tree[file["path"]]) if file["path"] in tree else None,
        }
        for file in wanted["files"]
    ]
    return 200, {"files": modes}


def _oid(content: bytes) -> str:
    if len(content) >= LARGE_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _batch(hub: "Hub", wanted: Mapping[str, Any]) -> Reply:
    objects = []
    for one in wanted["objects"]:
        told = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] not in hub.uploaded and hub.blob(one["oid"]) is None:
            told["actions"] = {"upload": {"href": f"http://localhost:{hub.port}/upload/{one['oid']}?signature=secret"}}
        objects.append(told)
    return 200, {"transfer": "basic", "objects": objects}


def _commit(hub: "Hub", repository: "Repository", name: str, branch: str, body: bytes) -> Reply:
    """Make one commit, or none: every line is looked at before the branch moves."""
    lines = [json.loads(line) for line in body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit") not in (None, repository.branches[branch]):
        return 412, {"error": "A commit has happened since"}
    tree = dict(repository.commits[repository.branches[branch]])
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            tree[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            content = hub.uploaded.get(value["oid"]) or hub.blob(value["oid"])
            if content is None:
                return 400, {"error": f"{value['path']} was not uploaded"}
            tree[value["path"]] = content
        elif line["key"] == "deletedFile":
            del tree[value["path"]]
    oid = repository.push(tree, branch)
    return 200, {"commitOid": oid, "commitUrl": f"{hub.endpoint}/{name}/commit/{oid}"}
