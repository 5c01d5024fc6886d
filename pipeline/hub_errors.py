"""Requests to the Hub that fail: again after a pause where the trouble may pass, else an error that says what to do."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import parse_ratelimit_headers

from pipeline.errors import HubError

WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Pauses between attempts at one request; they start anew whenever bytes have come in."""

LONGEST_WAIT_SECONDS = 330.0
"""The Hub counts requests over five minutes; a server that asks for more patience than that gets none."""

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the Hub."""

    kind: Literal["model", "dataset"]
    name: str
    """org/name."""

    @property
    def page(self) -> str:
        """Where a person reads about it."""
        return f"{endpoint()}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    @property
    def cache(self) -> Path:
        """Its folder in the client's cache: blobs/, refs/, snapshots/."""
        return Path(constants.HF_HUB_CACHE) / str(repo_folder_name(repo_id=self.name, repo_type=self.kind))


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, as errors name it."""

    repository: Repository
    revision: str
    file: str | None = None

    def __str__(self) -> str:
        whole = f"{self.repository.kind} {self.repository.name}"
        return f"{self.file} of {whole}" if self.file else whole


def persist(request: Request, call: Callable[[], T], arrived: Callable[[], int] = lambda: 0) -> T:
    """Make a request, again after a pause where the trouble may pass; raise HubError for the trouble that stays.

    `arrived` tells how many bytes have come in: progress earns fresh attempts, so a line that drops every gigabyte
    still carries the whole file.
    """
    attempt, seen = 0, arrived()
    while True:
        try:
            return call()
        except (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, OfflineModeIsEnabled, HFValidationError) as caught:
            error: Exception = caught
        except LocalEntryNotFoundError as caught:
            # hf_hub_download's word for "no answer, and not in the cache": the cause tells which answer was missing.
            error = caught.__cause__ if isinstance(caught.__cause__, Exception) else caught
        except json.JSONDecodeError as caught:
            error = caught
        if arrived() > seen:
            attempt, seen = 0, arrived()
        wait = _wait_seconds(error, attempt)
        if wait is None:
            raise _explain(error, request) from error
        log.warning("%s: %s; trying again in %.0f s", request, _short(error), wait)
        time.sleep(wait)
        attempt += 1


def _wait_seconds(error: Exception, attempt: int) -> float | None:
    """Seconds until the next attempt, as many as the server wishes if it says so; None: give up."""
    if attempt >= len(WAITS_SECONDS):
        return None
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in (408, 429, 500, 502, 503, 504):
            return None
        wished = _wished_seconds(error)
        return None if wished > LONGEST_WAIT_SECONDS else max(wished, WAITS_SECONDS[attempt])
    passing = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
    return WAITS_SECONDS[attempt] if isinstance(error, passing) else None


def _wished_seconds(error: HfHubHTTPError) -> float:
    headers = error.response.headers
    asked = headers.get("Retry-After", "").strip()
    if asked.isdigit():
        return float(asked)
    limit = parse_ratelimit_headers(headers) if error.response.status_code == 429 else None
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else 0.0


def _explain(error: Exception, request: Request) -> HubError:
    """Say what happened in our own words: the client's text may hold signed addresses."""
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(f"{request} is not in the cache and HF_HUB_OFFLINE is set; unset it for one run that downloads")
    if isinstance(error, HFValidationError):
        return HubError(f"{request.repository.name!r} is no repository name; expected org/name")
    if isinstance(error, HfHubHTTPError):
        return HubError(f"{request}: {_explain_status(error, request)}")
    if isinstance(error, httpx2.TransportError):
        return HubError(
            f"{request}: {endpoint()} cannot be reached ({_short(error)}); check the network, the proxy and "
            "HF_ENDPOINT. Without a network, set HF_HUB_OFFLINE=1, with HF_HOME at a cache that already holds it"
        )
    return HubError(
        f"{request}: what answers at {endpoint()} is not a Hub ({_short(error)}); check HF_ENDPOINT and whether the "
        "network wants a log-in of its own"
    )


def _explain_status(error: HfHubHTTPError, request: Request) -> str:
    status, page = error.response.status_code, request.repository.page
    token = get_token() is not None
    if isinstance(error, GatedRepoError):
        remedy = "check that HF_TOKEN is of that account and may read gated repositories" if token else "set HF_TOKEN"
        return f"access is gated ({status}); accept the terms at {page}, then {remedy}"
    if isinstance(error, DisabledRepoError):
        return f"it was disabled by its owner or by the Hub ({status}); see {page}"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"there is no branch, tag or commit {request.revision!r} ({status}); see {page}/tree/main for those there"
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return f"there is no such file at {request.revision} ({status}); see {page}/tree/{request.revision}"
    if status == 401:
        remedy = "the token in use was not accepted, make a new one" if token else "no token is set, set HF_TOKEN"
        return f"the Hub wants a log-in ({status}): it is private, or does not exist; {remedy}"
    if status == 403:
        return f"access is forbidden ({status}); the token lacks the right to read it, see {page}"
    if status == 404:
        return f"there is no such {request.repository.kind} at {endpoint()} ({status}); check the spelling"
    wished = _wished_seconds(error)
    after = f"asking to wait {wished:.0f} s" if wished > LONGEST_WAIT_SECONDS else f"{len(WAITS_SECONDS) + 1} times"
    if status == 429:
        remedy = "wait some minutes and run again" if token else "wait some minutes, or set HF_TOKEN for a higher limit"
        return f"too many requests ({status}, {after}); {remedy}; what came in is kept"
    return f"the Hub answered {status} ({after}); see https://status.huggingface.co and run again later"


def _short(error: Exception) -> str:
    """Name an error in a few words that hold no address, header or token."""
    if isinstance(error, HfHubHTTPError):
        return f"HTTP {error.response.status_code}"
    cause: Any = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
    reason = getattr(cause, "strerror", None)
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def endpoint() -> str:
    """Return the Hub's address, without a user or password that HF_ENDPOINT may hold."""
    parts = urlsplit(str(constants.ENDPOINT))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
