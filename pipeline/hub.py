"""The Hugging Face Hub through its own client, wrapped once: resolve, list, download, check.

HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and the client's other variables mean what they mean everywhere. Files go
into the client's own cache, in its own layout, and nowhere else. Two things are ours. The client (2.4) throws away a
half-downloaded file when its process ends; here it stays as `<etag>.incomplete` and the next run goes on from its last
byte. And every file is checked against the digest that the Hub lists for it before it enters the cache.
"""

import errno
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.file_download import get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status

from pipeline.errors import AssayError, HubError, StorageError
from pipeline.hub_errors import Repository, Request, persist

CHUNK_BYTES = 2**20

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

HEX_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
"""What may become a file's name in the cache; a server's word is not taken for a path."""

log = logging.getLogger(__name__)

OnBytes = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository at one commit, as the Hub lists it."""

    path: str
    bytes: int
    etag: str
    """The sha256 of a large file, the git blob id (a sha1 with a header) of a small one; its name in the cache."""

    @property
    def sha256(self) -> str | None:
        """The file's sha256, where the Hub gives one."""
        return self.etag if len(self.etag) == 64 else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit."""

    repository: Repository
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def folder(self) -> Path:
        """Where `download` puts this commit's files."""
        return self.repository.cache / "snapshots" / self.commit


def snapshot(repository: Repository, revision: str | None) -> Snapshot:
    """Resolve a branch, tag or commit (None: main) and list the files there, in a single answer of the Hub.

    Everything later asks for the commit, so a branch that moves in between mixes nothing. With HF_HUB_OFFLINE=1 the
    cache answers instead, from what an earlier run left there.
    """
    revision = revision or constants.DEFAULT_REVISION
    if constants.is_offline_mode():
        return _cached_snapshot(repository, revision)
    info = persist(Request(repository, revision), lambda: _repo_info(repository, revision))
    listed = [(s.rfilename, s.size, s.lfs.sha256 if s.lfs else s.blob_id) for s in info.siblings or ()]
    if not all(HEX_DIGEST.fullmatch(str(etag)) and size is not None for _, size, etag in [*listed, ("", 0, info.sha)]):
        raise HubError(f"{repository.page}: the listing names no commit, sizes or digests; HF_ENDPOINT must be a Hub's")
    outside = [path for path, _, _ in listed if path.startswith("/") or "\\" in path or ".." in path.split("/")]
    if outside:
        raise HubError(f"{repository.page}: lists {outside[0]!r}, outside of itself; HF_ENDPOINT must be a Hub's")
    _remember_branch(repository, revision, info.sha)
    return Snapshot(repository, info.sha, tuple(RemoteFile(*file) for file in sorted(listed)))


def _repo_info(repository: Repository, revision: str) -> Any:
    """Ask for commit and files; the client gives up on an answer of another shape with whatever error comes first."""
    try:
        return HfApi(endpoint=constants.ENDPOINT).repo_info(
            repository.name,
            repo_type=repository.kind,
            revision=revision,
            files_metadata=True,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise HubError(
            f"{repository.page}: the answer is not a Hub's ({type(error).__name__}: {error}); check HF_ENDPOINT"
        ) from error


def _remember_branch(repository: Repository, revision: str, commit: str) -> None:
    """Note where a branch is, for runs without a network; a cache that knows it already may be read-only."""
    reference = repository.cache / "refs" / revision
    if revision == commit or (reference.is_file() and reference.read_text(encoding="utf-8") == commit):
        return
    with storage(reference):
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit, encoding="utf-8")


def _cached_snapshot(repository: Repository, revision: str) -> Snapshot:
    """List what the cache holds of a commit; a link's target is named by the digest that was once checked."""
    reference = repository.cache / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    found = Snapshot(repository, commit, ())
    if not found.folder.is_dir():
        raise HubError(
            f"{repository.name} at {revision} is not in the cache ({repository.cache}) and HF_HUB_OFFLINE is set; "
            "unset it for one run that downloads, or point HF_HOME at a cache that holds it"
        )
    links = sorted(path for path in found.folder.rglob("*") if path.is_symlink() and path.is_file())
    files = (RemoteFile(p.relative_to(found.folder).as_posix(), p.stat().st_size, p.readlink().name) for p in links)
    return Snapshot(repository, commit, tuple(files))


def download(source: Snapshot, file: RemoteFile, on_bytes: OnBytes = lambda _: None) -> Path:
    """Return the file's path in the cache, downloading, resuming and checking what is not there yet.

    `on_bytes` gets the number of bytes that are there or came in, negative when a server makes us start again.
    Raises HubError, or StorageError when the disk is full; what came in so far stays for the next run.
    """
    repository, pointer = source.repository, source.folder / file.path
    if pointer.is_file():
        if pointer.stat().st_size == file.bytes:
            on_bytes(file.bytes)
            return pointer
        log.warning("%s: the copy in the cache is incomplete, downloading it again", pointer)
        forget(pointer)
    request = Request(repository, source.commit, file.path)
    address = {"repo_type": repository.kind, "revision": source.commit, "endpoint": constants.ENDPOINT}
    url = hf_hub_url(repository.name, file.path, **address)
    head = persist(request, lambda: get_hf_file_metadata(url, token=None, endpoint=constants.ENDPOINT))
    by_xet = head.xet_file_data is not None and _takes_xet()
    with storage(repository.cache):
        if not by_xet:
            _fetch_blob(request, url, file, on_bytes)
        # Links the snapshot to the blob, as every user of this cache expects it. Only with Xet does it also download:
        # Xet checks each chunk against its hash, and leaves a whole file or none.
        try:
            path = Path(persist(request, lambda: hf_hub_download(repository.name, file.path, **address)))
        except (RuntimeError, OSError) as error:
            if not by_xet or (isinstance(error, OSError) and error.errno in DISK_FULL):
                raise
            raise HubError(
                f"{request}: the transfer through Xet failed ({type(error).__name__}); run again, or set "
                "HF_HUB_DISABLE_XET=1 for plain HTTP"
            ) from error
    if by_xet:
        on_bytes(file.bytes)
    if path.stat().st_size != file.bytes:
        found = path.stat().st_size
        forget(path)
        raise HubError(f"{request}: found {found} bytes, expected {file.bytes}; the file was dropped, run again")
    return path


def part(source: Snapshot, file: RemoteFile, begin: int, end: int) -> bytes:
    """Return some of a file's bytes, `end` not among them, and nothing more of it; from the cache where it is there."""
    pointer = source.folder / file.path
    if pointer.is_file():
        with pointer.open("rb") as stream:
            stream.seek(begin)
            return stream.read(end - begin)
    address = {"repo_type": source.repository.kind, "revision": source.commit, "endpoint": constants.ENDPOINT}
    url = hf_hub_url(source.repository.name, file.path, **address)
    request = Request(source.repository, source.commit, file.path)
    return persist(request, lambda: _range(url, begin, end, str(request)))


def _range(url: str, begin: int, end: int, where: str) -> bytes:
    """Fetch some of a file's bytes, `end` not among them; refuse a server that would send the whole file instead."""
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={begin}-{end - 1}"}
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            raise HubError(
                f"{where}: the server knows no ranges, and its header cannot be read without the whole file; "
                "download the repository and name its folder"
            )
        found: bytes = response.read()
    if len(found) != end - begin:
        raise HubError(f"{where}: {len(found)} bytes came for a range of {end - begin}; look at HF_ENDPOINT's server")
    return found


def forget(pointer: Path) -> None:
    """Drop a damaged file from the cache, so that the next run downloads it anew."""
    if pointer.is_symlink():
        blob = pointer.parent / pointer.readlink()
        pointer.resolve().unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
    pointer.unlink(missing_ok=True)


def missing_bytes(source: Snapshot, files: tuple[RemoteFile, ...]) -> int:
    """Return how much of these files is still to be downloaded."""
    missing = 0
    for file in files:
        blob = source.repository.cache / "blobs" / file.etag
        partial = blob.with_name(f"{file.etag}.incomplete")
        there = next((path.stat().st_size for path in (source.folder / file.path, blob, partial) if path.is_file()), 0)
        missing += max(0, file.bytes - there)
    return missing


def require_space(repository: Repository, needed: int) -> None:
    """Raise StorageError where the cache's disk has less than `needed` bytes left."""
    if needed == 0:
        return
    with storage(repository.cache):
        repository.cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(repository.cache).free
    if free < needed:
        raise StorageError(
            f"{repository.cache}: {needed / 1e9:.2f} GB are still to be downloaded and {free / 1e9:.2f} GB are free; "
            "free some space, or point HF_HOME at a larger disk"
        )


def _fetch_blob(request: Request, url: str, file: RemoteFile, on_bytes: OnBytes) -> None:
    """Put blobs/<etag> into the cache over plain HTTP, from the last byte of an earlier try on."""
    cache = request.repository.cache
    blob, partial = cache / "blobs" / file.etag, cache / "blobs" / f"{file.etag}.incomplete"
    lock = cache.parent / ".locks" / cache.name / f"{file.etag}.lock"
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.is_file():
            on_bytes(file.bytes)
            return
        if _size(partial) > file.bytes:
            partial.unlink()
        on_bytes(_size(partial))
        if _size(partial) < file.bytes or not partial.is_file():
            persist(request, lambda: _stream(url, partial, on_bytes), arrived=lambda: _size(partial))
        _verify(partial, file, request)
        partial.replace(blob)


def _stream(url: str, partial: Path, on_bytes: OnBytes) -> None:
    """Append what is missing; start again where the server knows no ranges."""
    have = _size(partial)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and not resumed:
            on_bytes(-have)
        with partial.open("ab" if resumed else "wb") as stream:
            # As it comes: a wanted chunk size would hold bytes back, which a broken line then loses.
            for chunk in response.iter_bytes():
                stream.write(chunk)
                stream.flush()
                on_bytes(len(chunk))


def _verify(partial: Path, file: RemoteFile, request: Request) -> None:
    """Compare size and digest with the Hub's listing; a wrong file is dropped, since resuming it cannot mend it."""
    found_bytes = partial.stat().st_size
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {found_bytes}\0".encode(), usedforsecurity=False)
    with partial.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    if (found_bytes, digest.hexdigest()) != (file.bytes, file.etag):
        partial.unlink()
        name = "sha256" if file.sha256 else "git blob id"
        raise HubError(
            f"{request}: {found_bytes} bytes with {name} {digest.hexdigest()} came in, the Hub lists {file.bytes} "
            f"bytes with {file.etag}; they were dropped: run again, and if it stays wrong, look at the proxy or mirror "
            "in between (HF_ENDPOINT)"
        )


def _takes_xet() -> bool:
    """Whether hf_hub_download goes by Xet where the Hub offers it."""
    return not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextmanager
def storage(where: Path) -> Iterator[None]:
    """Turn trouble with the disk into StorageError. What came in so far stays, and the next run goes on from there."""
    try:
        yield
    except AssayError:
        raise
    except OSError as error:
        if error.errno in DISK_FULL:
            raise StorageError(
                f"{where}: the disk is full; what came in so far is kept: free some space, or point HF_HOME at a "
                "larger disk, and run again"
            ) from error
        raise StorageError(f"{error.filename or where}: {error.strerror or error}") from error
