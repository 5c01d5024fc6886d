"""Where images go: HOST/REPOSITORY as it is written on a command line."""

import ipaddress
import re
from dataclasses import dataclass

from pipeline.errors import ParamsError

PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
REPOSITORY = re.compile(rf"{PART}(?:/{PART})*")
"""As the distribution specification has it."""

TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

ALIASES = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
"""Names under which people know a registry that answers at another."""


@dataclass(frozen=True, slots=True)
class Address:
    """A repository in a registry."""

    scheme: str
    host: str
    """With the port, when it is not the scheme's own."""
    repository: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read [https://]HOST[:PORT]/REPOSITORY.

        Plain HTTP is spoken with this machine alone, where no one can listen in, and where test registries rarely have
        a certificate; https:// in front asks for TLS there, too.
        """
        scheme, separator, rest = text.rpartition("://")
        host, slash, repository = rest.partition("/")
        if not (slash and re.fullmatch(r"[A-Za-z0-9.-]+(:\d+)?|\[[0-9a-fA-F:]+\](:\d+)?", host)):
            raise ParamsError(f"--registry {text!r}: expected HOST/REPOSITORY, such as registry.example.com/team/model")
        if not REPOSITORY.fullmatch(repository):
            raise ParamsError(
                f"--registry {text!r}: {repository!r} is no repository name; use lower-case letters, digits, and "
                "single . _ - / between them, and no tag"
            )
        plain = scheme == "http" or (not separator and is_loopback(host))
        if scheme not in ("", "http", "https") or (scheme == "http" and not is_loopback(host)):
            raise ParamsError(f"--registry {text!r}: only https is spoken with another machine")
        return cls("http" if plain else "https", host, repository)

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}"

    @property
    def origin(self) -> str:
        """Scheme and host that requests go to."""
        return f"{self.scheme}://{ALIASES.get(self.host, self.host)}"

    @property
    def api(self) -> str:
        """The path that all requests about this repository begin with."""
        return f"/v2/{self.repository}"


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this machine."""
    name = re.sub(r":\d+$", "", host).strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_tag(text: str) -> str:
    """Return a tag as it is; ParamsError when no registry would take it."""
    if not TAG.fullmatch(text):
        raise ParamsError(f"{text!r} is no tag: letters, digits, and . _ - not in front, at most 128")
    return text


def check_digest(text: str) -> str:
    """Return a digest as it is; ParamsError when it is none."""
    if not DIGEST.fullmatch(text):
        raise ParamsError(f"{text!r} is no digest: expected sha256: and 64 hex digits, as in release.json")
    return text
