"""HTTP to one registry: authentication, patience with trouble that passes, errors that say what to do."""

import json
import logging
import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2

from pipeline.errors import RegistryError
from pipeline.registry import credentials
from pipeline.registry.address import Address, is_loopback
from pipeline.registry.credentials import Credentials

WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Pauses between attempts at one request."""

LONGEST_WAIT_SECONDS = 120.0
"""A registry that asks for more patience than that gets none."""

TIMEOUT = httpx2.Timeout(30.0, read=600.0)
"""A registry reads a whole layer again, to check its digest, before it answers the last request about it."""

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

log = logging.getLogger(__name__)

Body = bytes | Callable[[], Iterable[bytes]]
"""Bytes, or what gives them: a second attempt begins anew."""


class Interrupted(Exception):  # noqa: N818 - what stops a request, and no error yet
    """A request got no answer, or one that asks to try again; `wait_seconds` is what the registry wishes."""

    def __init__(self, why: str, wait_seconds: float = 0.0) -> None:
        super().__init__(why)
        self.wait_seconds = wait_seconds


class RefusedError(RegistryError):
    """The registry answered, and the answer is no."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Session:
    """Requests about one repository. Use it in a `with`."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.takes_chunks = True
        """False once the registry refused a second chunk: Google's Artifact Registry, for one, takes none."""
        self._http = httpx2.Client(
            base_url=address.origin,
            timeout=TIMEOUT,
            headers={"User-Agent": "assay"},
            trust_env=address.scheme == "https",  # no proxy leads to this machine
        )
        self._authorization: str | None = None
        self._credentials: Credentials | None = None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        url: str,
        *,
        what: str,
        expect: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
    ) -> httpx2.Response:
        """Make a request, again after a pause where the trouble may pass. RegistryError when it stays.

        `what` names the doing in errors, such as "push of the manifest"; `expect` lists the statuses that are answers.
        """
        attempt = 0
        while True:
            try:
                return self.once(method, url, what=what, expect=expect, headers=headers, body=body)
            except Interrupted as trouble:
                self.pause(trouble, attempt, what)
                attempt += 1

    def once(
        self,
        method: str,
        url: str,
        *,
        what: str,
        expect: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
    ) -> httpx2.Response:
        """Make a request once. Raises Interrupted for trouble that may pass, RegistryError for what will not."""
        response = self._send(method, url, headers, body)
        if response.status_code == 401 and self._owns(url):
            self._authorize(response)
            response = self._send(method, url, headers, body)
        if response.status_code in expect:
            return response
        if response.status_code in PASSING:
            raise Interrupted(self._describe(response), _wished_seconds(response))
        message = f"{self.address}: {what}: {self._describe(response)}{self._advice(response)}"
        raise RefusedError(message, response.status_code)

    def pause(self, trouble: Interrupted, attempt: int, what: str) -> None:
        """Wait before attempt number `attempt` + 1; RegistryError when there were enough."""
        if attempt >= len(WAITS_SECONDS) or trouble.wait_seconds > LONGEST_WAIT_SECONDS:
            raise RegistryError(
                f"{self.address}: {what}: {trouble}; what the registry has is kept: run again when it answers"
            ) from trouble
        seconds = max(WAITS_SECONDS[attempt], trouble.wait_seconds)
        log.warning("%s: %s: %s; trying again in %.0f s", self.address, what, trouble, seconds)
        time.sleep(seconds)

    def _send(self, method: str, url: str, headers: Mapping[str, str] | None, body: Body) -> httpx2.Response:
        """Send once, with what authorizes us, but never to another host than the registry's."""
        sent = dict(headers or {})
        if self._authorization and self._owns(url):
            sent["Authorization"] = self._authorization
        content = body if isinstance(body, bytes) else body()
        # Reading may lead elsewhere, to a store of blobs (httpx drops the Authorization on the way); writing may not.
        redirects = method in ("GET", "HEAD")
        return self._guard(
            lambda: self._http.request(method, url, headers=sent, content=content, follow_redirects=redirects)
        )

    def _guard(self, call: Callable[[], httpx2.Response]) -> httpx2.Response:
        try:
            return call()
        except httpx2.TransportError as error:
            if (reason := _tls_reason(error)) is not None:
                raise RegistryError(
                    f"{self.address.host}: {reason}; where its certificate is of your own authority, name that in "
                    "SSL_CERT_FILE"
                ) from error
            raise Interrupted(f"the connection failed ({type(error).__name__}: {_plain(str(error))})") from error
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            reason = f"{type(error).__name__}: {_plain(str(error))}"
            raise RegistryError(f"{self.address.host}: does not answer as a registry does ({reason})") from error

    def _owns(self, url: str) -> bool:
        """Whether a URL lies at the registry itself."""
        absolute = urlsplit(urljoin(self.address.origin, url))
        return f"{absolute.scheme}://{absolute.netloc}" == self.address.origin

    def _authorize(self, response: httpx2.Response) -> None:
        """Answer a challenge: basic authentication, or a token of the server that the registry names."""
        challenge = response.headers.get("WWW-Authenticate", "")
        kind, _, rest = challenge.partition(" ")
        parameters = {name.lower(): value for name, value in re.findall(r'(\w+)="([^"]*)"', rest)}
        self._credentials = credentials.find(self.address.host, self.address.repository)
        if kind.lower() == "basic" and self._credentials is not None:
            self._authorization = self._credentials.basic
        elif kind.lower() == "bearer" and "realm" in parameters:
            self._authorization = f"Bearer {self._token(parameters)}"

    def _token(self, parameters: Mapping[str, str]) -> str:
        """Fetch a token (distribution's token authentication; OAuth2 where all we have is an identity token)."""
        realm = urlsplit(parameters["realm"])
        if realm.scheme != "https" and not is_loopback(realm.netloc):
            raise RegistryError(f"{self.address.host}: names a token server without https; no credentials go there")
        known = self._credentials
        query = {name: parameters[name] for name in ("service", "scope") if parameters.get(name)}
        if known is not None and known.is_identity_token:
            form = query | {"grant_type": "refresh_token", "client_id": "assay", "refresh_token": known.secret}
            answer = self._guard(lambda: self._http.post(parameters["realm"], data=form))
        else:
            headers = {"Authorization": known.basic} if known else {}
            answer = self._guard(lambda: self._http.get(parameters["realm"], params=query, headers=headers))
        if answer.status_code in PASSING:
            raise Interrupted(f"its token server {self._describe(answer)}", _wished_seconds(answer))
        try:
            found = answer.json() if answer.status_code == 200 else {}
            return str(found.get("token") or found["access_token"])
        except (ValueError, KeyError, AttributeError):
            raise RegistryError(
                f"{self.address.host}: its token server at {realm.netloc} gave no token (HTTP {answer.status_code})"
                f"{self._login_advice()}"
            ) from None

    def _describe(self, response: httpx2.Response) -> str:
        """Say what the registry answered, with its own words where it has any."""
        words = "; ".join(_messages(response))
        return f"the registry answered {response.status_code}" + (f" ({words})" if words else "")

    def _advice(self, response: httpx2.Response) -> str:
        if response.status_code == 401:
            return self._login_advice()
        if response.status_code == 403:
            found = (
                f"the credentials of {self._credentials.origin}" if self._credentials else "no credentials, as it has"
            )
            return f"; with {found}, it allows no push to this repository: ask for the right to"
        if response.status_code == 404:
            return "; it may have to be created there first"
        if response.status_code == 413:
            return "; a proxy in front of it limits the size of requests"
        return ""

    def _login_advice(self) -> str:
        if self._credentials is None:
            return (
                f"; no credentials for it were found: `podman login {self.address.host}` or `docker login`, or set "
                f"{credentials.USER} and {credentials.PASSWORD}"
            )
        return f"; it does not take the credentials of {self._credentials.origin}: log in again"


def _wished_seconds(response: httpx2.Response) -> float:
    asked = response.headers.get("Retry-After", "").strip()
    return float(asked) if asked.isdigit() else 0.0


def _messages(response: httpx2.Response) -> list[str]:
    """Read the errors of the specification's form: {"errors": [{"code": ..., "message": ...}]}."""
    try:
        listed: Any = json.loads(response.read()).get("errors", [])
        return [_plain(f"{one.get('code', '')}: {one.get('message', '')}".strip(": ")) for one in listed[:3]]
    except (ValueError, AttributeError, TypeError):
        return []


def _plain(text: str) -> str:
    """One line of at most 200 printable characters."""
    return "".join(character if character.isprintable() else " " for character in text)[:200]


def _tls_reason(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate cannot be trusted ({error.verify_message})"
        if isinstance(error, ssl.SSLError) or "WRONG_VERSION_NUMBER" in str(error):
            return f"no TLS connection comes about ({_plain(str(error))})"
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return f"its certificate cannot be trusted ({_plain(str(error))})"
        error = error.__cause__ or error.__context__
    return None
