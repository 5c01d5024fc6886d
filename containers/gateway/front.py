"""What every request goes through first: an id, a key, a rate, a size; and what is noted of it afterwards."""

import time
import traceback
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from containers.gateway.api import api_error
from containers.gateway.errors import ApiError
from containers.gateway.keys import Keys, Rates
from containers.gateway.metrics import Metrics
from containers.gateway.supervisor import Log

LONGEST_ID = 128
PROBES = ("/health", "/metrics", "/ping")
"""Not counted against a key's rate, and not logged when all is well."""


class Front:
    """Middleware of plain ASGI: a wrapper around each response would cost every streamed token."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        rates: Rates,
        public: frozenset[str],
        most_bytes: int,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._app, self._keys, self._rates, self._public = app, keys, rates, public
        self._most_bytes, self._metrics, self._log = most_bytes, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, began = Headers(scope=scope), time.perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = _request_id(headers.get("x-request-id"))
        status, started = 500, False

        async def noting(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = state["request_id"]
            await send(message)

        owner = None
        try:
            owner = self._admit(scope["path"], headers)
            await self._app(scope, self._limited(receive), noting)
        except ApiError as error:
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, noting)
        except Exception as error:
            self._log("internal_error", request_id=state["request_id"], error=traceback.format_exc())
            if not started:
                failure = api_error(error)
                await JSONResponse(failure.body, failure.status)(scope, receive, noting)
        finally:
            status = state.get("status", status)
            self._note(scope, status, owner, time.perf_counter() - began)

    def _admit(self, path: str, headers: Headers) -> str | None:
        """Return whose key it is; None where none is needed. ApiError refuses."""
        if path in self._public:
            return None
        authorization = headers.get("authorization")
        if _from_another_site(headers) and (authorization or "").lower().startswith("basic"):
            raise ApiError(403, "cross_site_request", "another site's page may not use the key that the browser keeps")
        owner = self._keys.owner(authorization)
        if not path.startswith(PROBES):
            self._rates.take(owner)
        if int(headers.get("content-length") or 0) > self._most_bytes:
            raise self._too_large()
        return owner

    def _limited(self, receive: Receive) -> Receive:
        """Count a body that did not say how long it is."""
        seen = 0

        async def counting() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most_bytes:
                raise self._too_large()
            return message

        return counting

    def _too_large(self) -> ApiError:
        return ApiError(413, "request_too_large", f"a request may have {self._most_bytes} bytes here")

    def _note(self, scope: Scope, status: int, owner: str | None, seconds: float) -> None:
        # The route's pattern, never the path as it came: anybody could make new series without end.
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.requests.labels(route, str(status)).inc()
        if status >= 400 or not scope["path"].startswith(PROBES):
            self._log(
                "request", request_id=scope["state"]["request_id"], method=scope["method"], route=route, status=status,
                seconds=round(seconds, 4), key=owner,
            )  # fmt: skip


def _from_another_site(headers: Headers) -> bool:
    """Whether a browser says so; other clients do not send this header."""
    return headers.get("sec-fetch-site") not in (None, "same-origin", "none")


def _request_id(given: str | None) -> str:
    """Take a client's own id, if it is one that fits into a log line."""
    if given and len(given) <= LONGEST_ID and given.isascii() and given.isprintable():
        return given
    return f"req_{uuid.uuid4().hex}"
