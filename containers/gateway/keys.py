"""API keys, and how often each may ask."""

import base64
import binascii
import hashlib
import hmac
import time
from pathlib import Path

from pydantic import SecretStr

from containers.gateway.errors import ApiError

MISSING = ApiError(401, "invalid_api_key", "give an API key: `Authorization: Bearer KEY`")
WRONG = ApiError(401, "invalid_api_key", "this API key is not known here")


class Keys:
    """The keys that are let in, kept as digests. Empty: everybody is."""

    def __init__(self, keys: dict[str, str]) -> None:
        self._digests = {name: _digest(key) for name, key in keys.items()}

    @classmethod
    def read(cls, file: Path | None, given: SecretStr | None) -> "Keys":
        """Read keys from a file and from the environment; ValueError when there is none, or one has no text."""
        lines = file.read_text(encoding="utf-8").splitlines() if file else []
        lines += given.get_secret_value().split(",") if given else []
        keys = {}
        for line in (line.partition("#")[0].strip() for line in lines):
            name, separator, key = line.rpartition(":")
            if line and not key:
                raise ValueError("a line of the API keys names no key")
            if key:
                keys[name.strip() if separator else f"key-{_digest(key).hex()[:8]}"] = key.strip()
        if not keys:
            raise ValueError("the API keys are empty: nobody could ask anything")
        return cls(keys)

    def owner(self, authorization: str | None) -> str:
        """Return the name of the key in an Authorization header, Bearer or Basic. Raises ApiError.

        Every key is compared, each in constant time, so that an answer's delay tells nothing about any of them.
        """
        if not self._digests:
            return "everybody"
        if not authorization:
            raise MISSING
        digest, found = _digest(_secret(authorization)), None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        if found is None:
            raise WRONG
        return found


class Rates:
    """A token bucket for each key: a minute's requests may come at once, then they come at the rate."""

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        self._left: dict[str, tuple[float, float]] = {}
        """Requests left, and when that was true."""

    def take(self, owner: str) -> None:
        """Count one request; ApiError says when the next one may come."""
        if self._per_minute is None:
            return
        now, rate = time.monotonic(), self._per_minute / 60
        left, then = self._left.get(owner, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - then) * rate)
        if left < 1:
            message = f"this key may ask {self._per_minute} times a minute"
            raise ApiError(429, "rate_limit_exceeded", message, retry_after=(1 - left) / rate)
        self._left[owner] = (left - 1, now)


def _secret(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            raise WRONG from None
    raise MISSING


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.strip().encode()).digest()
