"""How this machine reaches package registries: what a fresh root file system must be told, and none of it kept here.

The values are read where the machine's own tools read them, and reach the inside through the environment, through
files at the same places, and through mounts of the files and folders that they name.
"""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

VARIABLES = re.compile(
    r"PIP_(?!CACHE_DIR).*|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|(https?|all|no)_proxy"
    r"|ASSAY_CONTAINER_(RUN_)?FLAGS",
    re.IGNORECASE,
)
APT = re.compile(r"Acquire::(http|https|Retries|Check-|Max-)")


def environment() -> dict[str, str]:
    """Return the variables that the inside needs."""
    return {name: value for name, value in os.environ.items() if VARIABLES.fullmatch(name)}


@functools.cache
def apt() -> list[str]:
    """Return apt's own options of how to reach a mirror: proxies, certificates, dates that are not checked."""
    printed = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return [line for line in printed.splitlines() if APT.match(line) and '""' not in line]


@functools.cache
def pip() -> list[Path]:
    """Return pip's configuration files, those for every user first and this user's own last."""
    command = [sys.executable, "-m", "pip", "config", "debug"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [Path(match[1]) for match in re.finditer(r"^ +(/\S+), exists: True$", printed, re.MULTILINE)]


@functools.cache
def mounts() -> list[Path]:
    """Return what those settings name on this machine, such as a folder of wheels or a bundle of certificates."""
    texts = [*environment().values(), *apt(), *(path.read_text(encoding="utf-8") for path in pip())]
    named: set[Path] = set()
    for text in texts:
        # The pages of a package index in a folder lead to files beside that folder.
        named |= {Path(match[1]).parent for match in re.finditer(r"file://(/[^\s\";,]+)", text)}
        named |= {Path(match[0]) for match in re.finditer(r"(?<![\w:/.-])/[^/\s\";,][^\s\";,]*", text)}
    found = {path for path in named if path.exists()}
    return sorted(path for path in found if not any(other in path.parents for other in found))
