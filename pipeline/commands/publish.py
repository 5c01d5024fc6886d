"""`assay publish`: an artifact's folder to the Hub, with a model card that holds what was measured.

All in one commit: whoever looks sees the state before or the state after, and a run that breaks off leaves blobs that
nobody sees, and that the next run need not send again.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from pipeline import digests, hub, paths
from pipeline.commands.card import card
from pipeline.errors import HubError, ParamsError, SelectionError, StorageError
from pipeline.hub import Snapshot
from pipeline.hub_errors import Repository, endpoint
from pipeline.records import FILE, Artifact, Checkpoint, Corpus, File, Quality, Reference, Selection

CARD = "README.md"

log = logging.getLogger(__name__)


def publish(
    name: str, artifact: str | None = None, *, licence: str | None = None, private: bool = False, branch: str = "main"
) -> str:
    """Upload an artifact, the winner when none is named, to the Hub's `name` (org/name); return the commit's address.

    The repository is made where there is none. Files of an artifact that was published there before, and that this one
    does not have, go with the same commit; others are left alone. Raises HubError, and StorageError for files or
    measurements that are not of this artifact.
    """
    if get_token() is None:
        raise HubError(f"no token is set; set HF_TOKEN to one that may write to {name}")
    record, text = _prepare(name, artifact, licence)
    folder, repository = paths.artifact(record.name), Repository("model", name)
    files = [file for file in record.files if file.path != CARD]
    api = HfApi(endpoint=constants.ENDPOINT)
    with _explained(repository):
        api.create_repo(name, private=private, exist_ok=True)
        if branch != constants.DEFAULT_REVISION:
            api.create_branch(name, branch=branch, exist_ok=True)
    before = hub.snapshot(repository, branch)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=text.encode()),
        *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=folder / path) for path in _paths(files)),
        *(CommitOperationDelete(path_in_repo=path) for path in sorted(_earlier(before) - {*_paths(files), CARD})),
    ]
    with _explained(repository):
        commit = api.create_commit(
            name, operations, commit_message=f"{record.name}, {record.digest[:12]}", revision=branch,
            parent_commit=before.commit,
        )  # fmt: skip
    _check(hub.snapshot(repository, str(commit.oid)), files)
    return str(commit.commit_url)


def _prepare(name: str, artifact: str | None, licence: str | None) -> tuple[Artifact, str]:
    """Read the records, hold the files against them, and write the card."""
    selection = Selection.load(paths.SELECTION)
    artifact = artifact or selection.winner
    if artifact is None:
        raise SelectionError("no artifact passes the constraints, so none is the winner; name one with --artifact")
    if artifact not in {standing.name for standing in selection.ranking}:
        known = ", ".join(standing.name for standing in selection.ranking)
        raise ParamsError(f"{artifact!r} is none of the artifacts that were measured: {known}")
    record = Artifact.load(paths.artifact(artifact) / FILE)
    if record.unavailable is not None:
        raise ParamsError(f"artifact {artifact} does not exist: {record.unavailable}")
    if Quality.load(paths.quality(artifact)).artifact != record.digest:
        raise StorageError(f"{paths.quality(artifact)} is about another build of {artifact}; run `dvc repro`")
    digests.check_files(paths.artifact(artifact), record.files)
    text = card(
        name.rpartition("/")[2],
        record,
        selection,
        Checkpoint.load(paths.CHECKPOINT / FILE),
        Corpus.load(paths.CORPUS / FILE),
        Reference.load(paths.REFERENCE / FILE),
        licence,
    )
    return record, text


def _paths(files: list[File]) -> list[str]:
    return [*(file.path for file in files), FILE]


def _earlier(before: Snapshot) -> set[str]:
    """Name the files that an earlier artifact's record in the repository says are its own."""
    there = {file.path: file for file in before.files}
    if FILE not in there:
        return set()
    record = Artifact.load(hub.download(before, there[FILE]))
    return {file.path for file in record.files} & there.keys()


def _check(after: Snapshot, files: list[File]) -> None:
    """Hold what the Hub lists at the new commit against the record."""
    listed = {file.path: file for file in after.files}
    for file in files:
        there = listed.get(file.path)
        if there is None or there.bytes != file.bytes or there.sha256 not in (None, file.sha256):
            raise HubError(f"{after.repository.page}: {file.path} did not arrive as it is; publish again")


@contextmanager
def _explained(repository: Repository) -> Iterator[None]:
    """Say what went wrong in our own words: the client's text may hold signed addresses."""
    try:
        yield
    except HFValidationError as error:
        raise HubError(f"{repository.name!r} is no repository name; expected org/name") from error
    except (HfHubHTTPError, httpx2.HTTPError, RuntimeError, ValueError) as error:
        raise HubError(f"{repository.page}: nothing was published: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    while not isinstance(error, (HfHubHTTPError, httpx2.HTTPError)) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"the token may not write there ({status}); make one at {endpoint()}/settings/tokens that may"
        if status == 412:
            return f"somebody else changed it meanwhile ({status}); publish again"
        return f"the Hub answered {status}; what was sent is kept there, publish again"
    if isinstance(error, httpx2.HTTPError):
        return f"{endpoint()} cannot be reached ({type(error).__name__}); check the network, the proxy and HF_ENDPOINT"
    return str(error)
