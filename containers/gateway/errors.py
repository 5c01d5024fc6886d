"""What goes wrong for a client, in OpenAI's error object, each with a string code that programs can tell apart.

Clients retry on 408, 409, 429 and everything from 500 up, so a request that can never succeed gets another status, and
a refusal that time alone will lift gets 429 or 503 and says when.
"""

from typing import Any


class ApiError(Exception):
    """An answer that is no answer."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after
        """Seconds after which another try makes sense."""

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that go with it."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after)))
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="the API key is the password"'  # for the page in a browser
        if self.status == 504:
            headers["x-should-retry"] = "false"  # it would take as long again
        return headers


def unavailable(message: str, retry_after: float = 5) -> ApiError:
    """503: the engine is loading, restarting, or shutting down."""
    return ApiError(503, "engine_unavailable", message, retry_after=retry_after)


def unsupported(param: str, why: str) -> ApiError:
    """400: something that OpenAI's API knows, and this server does not."""
    return ApiError(400, "unsupported_parameter", f"{param}: {why}", param=param)


def too_long(message: str, param: str) -> ApiError:
    """400: prompt, or prompt and answer together, pass the context."""
    return ApiError(400, "context_length_exceeded", message, param=param)
