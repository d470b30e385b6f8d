"""The comment of a pull request: one, edited on each push, whatever others have written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ops.comment import AUTHOR, MARK, PAGE, TEXT_LIMIT, Comments, body
from tests.environments import HANG_SECONDS, ROOT

NEEDS = {
    "preview": {"result": "success", "outputs": {"dev": "| api | 1 |", "prod": "| web | 2 |"}},
    "scan": {"result": "failure", "outputs": {"scan": "bandit: 1 findings\n  B101 in ```x```"}},
}


class GitHub(ThreadingHTTPServer):
    """The part of GitHub's API that has comments, of a pull request 7 of acme/tap."""

    comments: list[dict[str, Any]]
    status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: GitHub

    def answer(self) -> None:
        comments, (path, _, query) = self.server.comments, self.path.partition("?")
        assert self.headers["Authorization"] == "Bearer token"
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "GET" and path == "/repos/acme/tap/issues/7/comments":
            page = int(dict(x.split("=") for x in query.split("&"))["page"])
            result: Any = comments[(page - 1) * PAGE : page * PAGE]
        elif self.command == "POST" and path == "/repos/acme/tap/issues/7/comments":
            result = comment(len(comments), AUTHOR, json.loads(text)["body"])
            comments.append(result)
        else:
            assert (self.command, path) == ("PATCH", f"/repos/acme/tap/issues/comments/{path[-3:]}")
            (result,) = (x for x in comments if str(x["id"]) == path[-3:])
            result["body"] = json.loads(text)["body"]
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(json.dumps(result).encode())

    do_GET = do_POST = do_PATCH = answer  # noqa: N815 - names of http.server

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def comment(number: int, author: str, text: str) -> dict[str, Any]:
    return {
        "id": 100 + number,
        "user": {"login": author},
        "body": text,
        "html_url": f"url-{number}",
    }


@pytest.fixture
def github() -> Iterator[GitHub]:
    server = GitHub(("127.0.0.1", 0), Handler)
    server.comments = [comment(n, "ann", f"{MARK} what do you think of this?") for n in range(PAGE)]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_first_push_makes_the_comment_and_the_next_edit_it(github: GitHub) -> None:
    comments = Comments(github.url, "acme/tap", 7, "token")
    assert comments.write(f"{MARK} one") == "url-100"
    assert comments.write(f"{MARK} two") == "url-100"
    others, (ours,) = github.comments[:PAGE], github.comments[PAGE:]
    assert ours["body"] == f"{MARK} two"
    assert {each["body"] for each in others} == {f"{MARK} what do you think of this?"}


def test_it_has_a_part_for_each_environment_and_no_text_ends_its_block() -> None:
    text = body(NEEDS)
    assert text.startswith(MARK)
    assert text.index("| api | 1 |") < text.index("There is no result") < text.index("| web | 2 |")
    assert text.count("```") == 2
    assert "B101 in '''x'''" in text


def test_a_job_that_failed_before_its_step_has_no_result() -> None:
    text = body({"preview": {"result": "failure", "outputs": {}}, "scan": {"result": "failure"}})
    assert text.count("There is no result") == 4


def test_it_is_never_longer_than_github_takes() -> None:
    long = "x" * 2 * TEXT_LIMIT
    outputs = dict.fromkeys(("dev", "staging", "prod", "scan"), long)
    text = body({"preview": {"outputs": outputs}, "scan": {"outputs": outputs}})
    assert len(text) < 65_536
    assert text.count(f"and {TEXT_LIMIT:,} characters more") == 4


def run(github: GitHub, **more: str) -> subprocess.CompletedProcess[str]:
    """What `make comment` runs, without the packages of this environment."""
    known = {
        "REPOSITORY": "acme/tap",
        "NUMBER": "7",
        "GH_TOKEN": "token",
        "NEEDS": json.dumps(NEEDS),
    }
    environment = {"PATH": os.environ["PATH"], "GITHUB_API_URL": github.url, **known, **more}
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom ops.comment import main; main()",
    ]
    return subprocess.run(
        command,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


def test_it_needs_no_package(github: GitHub) -> None:
    done = run(github)
    assert (done.returncode, done.stdout) == (0, "url-100\n"), done.stderr
    assert github.comments[-1]["body"] == body(NEEDS)


def test_a_refusal_is_one_clear_message(github: GitHub) -> None:
    github.status = 403
    done = run(github)
    assert done.returncode == 1
    assert done.stderr.startswith("error: GitHub answers 403 to http://127.0.0.1")
    assert "Traceback" not in done.stderr
    github.server_close()
    done = run(github, GITHUB_API_URL="http://127.0.0.1:1")
    assert done.stderr.startswith("error: GitHub cannot be reached: ")


def test_a_token_is_sent_by_tls_only() -> None:
    with pytest.raises(ValueError, match="must be an https URL, not http://example"):
        Comments("http://example.com", "acme/tap", 7, "token")
