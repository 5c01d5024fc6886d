"""Puts a comparison on its pull request, or merge request, in one comment that later runs replace.

python ci/comment.py FILE

On GitHub it reads GITHUB_TOKEN, GITHUB_REPOSITORY and PULL_REQUEST (the number); on GitLab GITLAB_TOKEN, CI_PROJECT_ID
and CI_MERGE_REQUEST_IID. Needs nothing but Python.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

MARKER = "<!-- assay compare -->"
"""Invisible, and how a later run finds the comment of an earlier one."""

MOST_CHARACTERS = 60_000
"""GitHub takes 65,536."""

CUT = "\n\n(cut here; the whole comparison is among the run's artifacts)\n"


def main() -> int:
    """Write the comment; return the exit code."""
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    if len(text) > MOST_CHARACTERS:
        text = text[:MOST_CHARACTERS].rpartition("\n")[0] + CUT
    body = {"body": f"{MARKER}\n{text}"}
    on_github = "GITHUB_REPOSITORY" in os.environ
    comments, one, headers = _github() if on_github else _gitlab()
    there = _earlier(comments, headers)
    if there is None:
        _ask("POST", comments, headers, body)
    else:
        _ask("PATCH" if on_github else "PUT", f"{one}/{there}", headers, body)
    return 0


def _github() -> tuple[str, str, dict[str, str]]:
    api = os.environ.get("GITHUB_API_URL", "https://api.github.com")
    issues = f"{api}/repos/{os.environ['GITHUB_REPOSITORY']}/issues"
    headers = {"Authorization": f"Bearer {os.environ['GITHUB_TOKEN']}", "Accept": "application/vnd.github+json"}
    return f"{issues}/{os.environ['PULL_REQUEST']}/comments", f"{issues}/comments", headers


def _gitlab() -> tuple[str, str, dict[str, str]]:
    api = os.environ["CI_API_V4_URL"]
    request = f"{api}/projects/{os.environ['CI_PROJECT_ID']}/merge_requests/{os.environ['CI_MERGE_REQUEST_IID']}"
    notes = f"{request}/notes"
    return notes, notes, {"PRIVATE-TOKEN": os.environ["GITLAB_TOKEN"]}


def _earlier(comments: str, headers: dict[str, str]) -> int | None:
    """Find an earlier run's comment, page by page."""
    page = 1
    while found := _ask("GET", f"{comments}?per_page=100&page={page}", headers):
        for comment in found:
            if str(comment["body"]).startswith(MARKER):
                return int(comment["id"])
        page += 1
    return None


def _ask(method: str, url: str, headers: dict[str, str], body: dict[str, str] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        url, data=data, method=method, headers={**headers, "Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


if __name__ == "__main__":
    sys.exit(main())
