"""Writes what a pull request's preview found as one comment, which each push edits.

    make comment    # .github/workflows/preview.yml

Takes from the environment REPOSITORY, NUMBER (of the pull request), GH_TOKEN, GITHUB_API_URL, and
NEEDS: the results and outputs of the jobs before, as GitHub's `toJSON(needs)` has them. Its job may
write to pull requests: it needs nothing but Python's own library, so that nothing is installed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

MARK = "<!-- tap-stack: preview -->"  # by which the next push finds the comment
AUTHOR = "github-actions[bot]"  # who a workflow's token is; nobody else's comment is edited
TEXT_LIMIT = 15_000  # characters of a part: four of them are below GitHub's 65,536 for a comment
PAGE = 100  # comments, the most that GitHub gives at once
TIMEOUT_SECONDS = 30


def body(needs: Mapping[str, Any]) -> str:
    """The comment in Markdown: the cost of each environment, then what the scanners found."""
    costs = needs["preview"].get("outputs", {})
    parts = [MARK, "### Cost"]
    parts += [shown(costs.get(each)) for each in ("dev", "staging", "prod")]
    scan = shown(needs["scan"].get("outputs", {}).get("scan")).replace("```", "'''")
    return "\n\n".join([*parts, "### Scan", f"```text\n{scan}\n```"])


def shown(text: str | None) -> str:
    """The output of a step, as much of it as a comment may have."""
    if not text:
        return "There is no result: see the log of the job."
    cut = f"\n... and {len(text) - TEXT_LIMIT:,} characters more: see the log of the job."
    return text.strip() if len(text) <= TEXT_LIMIT else text[:TEXT_LIMIT] + cut


class Comments:
    """The comments of a pull request, by GitHub's API."""

    def __init__(self, api: str, repository: str, number: int, token: str):
        if not api.startswith(("https://", "http://127.0.0.1:")):
            raise ValueError(f"GITHUB_API_URL must be an https URL, not {api}")
        self.issues, self.number, self.token = f"{api}/repos/{repository}/issues", number, token

    def call(self, method: str, path: str, value: Any = None) -> Any:
        """A call's result. Raises HTTPError for all but a success."""
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/vnd.github+json"}
        data = None if value is None else json.dumps(value).encode()
        request = Request(f"{self.issues}/{path}", data, headers, method=method)  # noqa: S310
        with urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310 - checked above
            return json.load(response)

    def all(self) -> Iterator[Any]:
        """All comments, page by page."""
        for page in count(1):
            found = self.call("GET", f"{self.number}/comments?per_page={PAGE}&page={page}")
            yield from found
            if len(found) < PAGE:
                return

    def write(self, text: str) -> str:
        """Edits our own comment, or makes it; the comment's URL."""
        ours = (x["id"] for x in self.all() if x["user"]["login"] == AUTHOR and MARK in x["body"])
        if found := next(ours, None):
            return str(self.call("PATCH", f"comments/{found}", {"body": text})["html_url"])
        return str(self.call("POST", f"{self.number}/comments", {"body": text})["html_url"])


def main() -> None:
    """Writes the comment; exits with 1 and GitHub's reason if it refuses."""
    text = body(json.loads(os.environ["NEEDS"]))
    api = os.environ.get("GITHUB_API_URL", "https://api.github.com")
    asked = os.environ["REPOSITORY"], int(os.environ["NUMBER"]), os.environ["GH_TOKEN"]
    try:
        sys.stdout.write(f"{Comments(api, *asked).write(text)}\n")
    except HTTPError as error:
        sys.exit(f"error: GitHub answers {error.code} to {error.url}: {error.read(500).decode()}")
    except OSError as error:
        sys.exit(f"error: GitHub cannot be reached: {error}")


if __name__ == "__main__":
    main()
