"""Walks through a deployed API as a user does, from outside, wherever it runs.

    make smoke URL=https://... [TOKEN=<access token>] [READ_ONLY=1] [JSON=1]

Without a token it looks at what everybody may, and that everything else is 401. With one it lists,
and unless it is only to read, makes an item and a file of its caller, follows them through their
life and deletes them. Needs no AWS credentials. The exit code is 1 if a check failed.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import typer
from urllib3.exceptions import HTTPError
from urllib3.filepost import encode_multipart_formdata

import tap_stack
from ops.smoke import Check, answer, report

TEXT = b"a line of text\n"
RECORDED_SECONDS = 60  # how long a file may take to be described
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Response:
    """Status, headers by their names in lower case, and body; status 0 for no response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; an empty object if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return {}


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Nowhere: it would take the token along."""


_opener = build_opener(_NoRedirect)


def send(method: str, url: str, body: bytes | None = None, **headers: str) -> Response:
    """A response, whatever its status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        request = Request(url, body, named, method=method)  # noqa: S310 - `main` looks at the scheme
        return Response(*answer(request, _opener.open))
    except (OSError, HTTPException, ValueError) as error:
        return Response(0, {}, str(error).encode())


class Walk:
    """The checks of an API at a URL, with the token of a caller or none."""

    def __init__(self, url: str, token: str):
        self.url, self.token = url.rstrip("/"), token

    def call(self, method: str, path: str, value: Any = None, **headers: str) -> Response:
        """A request of the caller, with a value as JSON."""
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        if value is None:
            return send(method, self.url + path, None, **headers)
        body = json.dumps(value).encode()
        return send(method, self.url + path, body, content_type="application/json", **headers)

    def expect(self, status: int, method: str, path: str, *value: Any, **headers: str) -> Check:
        """The check that a request has a status."""
        found = self.call(method, path, *value, **headers)
        shown = re.sub("/(items|files)/[^/]+", r"/\1/{id}", path)
        return Check(f"{method} {shown} is {status}", found.status == status, _shown(found))

    def everybody(self) -> Iterator[Check]:
        """What needs no token, and that everything else does."""
        stranger = Walk(self.url, "")
        for path in ("/health", "/openapi.yaml"):
            found = stranger.call("GET", path)
            if found.status != 404:  # turned off, or replaced, by the stack's own routes
                yield Check(f"GET {path} is 200", found.status == 200, _shown(found))
        for key, route in tap_stack.all_routes().items():
            method, path = key.split(" ")
            if route.scope and "{" not in path:
                yield stranger.expect(401, method, path)
        forged = Walk(self.url, "e30.e30.e30")
        yield forged.expect(401, "GET", "/items")
        yield stranger.expect(401, "GET", "/nothing")

    def lists(self) -> Iterator[Check]:
        """The caller's lists, and what is none."""
        yield self.expect(404, "GET", "/nothing")
        for path in ("/items", "/files", "/files/totals"):
            found = self.call("GET", path)
            if found.status != 404:  # a stack without this system
                yield Check(f"GET {path} is 200", found.status == 200, _shown(found))

    def item(self) -> Iterator[Check]:
        """The life of an item."""
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        try:
            for request, expected, found in tap_stack.walk_item(self.url, headers):
                status = expected.partition(" ")[0]
                yield Check(f"{request} is {status}", found == expected, found)
        except HTTPError as error:
            yield Check("the life of an item ends", False, str(error))

    def file(self) -> Iterator[Check]:
        """The life of a file: its upload, its record, its download."""
        wanted = {"name": f"smoke-{uuid.uuid4()}.txt", "content_type": "text/plain"}
        form = self.call("POST", "/files", wanted)
        if form.status == 404:  # a stack without this system
            return
        if form.status == 422 and b'"/content_type"' in form.body:  # one that takes no texts
            return
        yield Check("POST /files is 201", form.status == 201, _shown(form))
        if form.status != 201:
            return
        fields = {**form.json()["fields"], "file": ("file", TEXT)}
        body, kind = encode_multipart_formdata(fields)
        sent = send("POST", form.json()["url"], body, content_type=kind)
        yield Check("S3 takes the form", sent.status in (201, 204), _shown(sent))
        path, seconds = f"/files/{form.json()['id']}", time.monotonic()
        try:
            record = self._until(lambda: self.call("GET", path))
            found = record.json().get("content_type"), record.json().get("size")
            took = f"{found} after {time.monotonic() - seconds:.1f} s"
            yield Check("its record is there", found == ("text/plain", len(TEXT)), took)
            scanned = self._until(lambda: self.call("GET", f"{path}/content"), 409)
            content = send("GET", scanned.headers.get("location", ""))
            yield Check("its content is what was sent", content.body == TEXT, _shown(content))
        finally:
            yield self.expect(204, "DELETE", path)

    def _until(self, look: Callable[[], Response], early: int = 404) -> Response:
        deadline = time.monotonic() + RECORDED_SECONDS
        while (found := look()).status == early and time.monotonic() < deadline:
            time.sleep(0.5)
        return found


def _shown(found: Response) -> str:
    """A response in a line: never a body that may hold data of somebody."""
    title = found.json().get("title", "") if found.status >= 400 and found.body[:1] == b"{" else ""
    return f"{found.status} {title or ('' if found.status else found.body.decode())}".strip()


def main(
    url: Annotated[str, typer.Option(help="the API's address, such as the output api_url")],
    read_only: Annotated[bool, typer.Option(help="make nothing")] = False,
    json_: Annotated[bool, typer.Option("--json", help="print one JSON value")] = False,
) -> None:
    """Walks through an API; the environment's TOKEN is its caller's access token."""
    where = urlsplit(url)
    if where.scheme != "https" and where.hostname not in LOOPBACK:
        raise typer.BadParameter(f"URL must be an https address, not {url!r}: tokens are secret")
    walk = Walk(url, os.environ.get("TOKEN", ""))
    parts = [walk.everybody]
    if walk.token:
        parts += [walk.lists] if read_only else [walk.lists, walk.item, walk.file]
    checks = [check for part in parts for check in part()]
    failures = sum(not each.passed for each in checks)
    if json_:
        typer.echo(json.dumps({"failed": failures, "checks": [x._asdict() for x in checks]}))
    else:
        for each in checks:
            report(each)
        typer.echo(f"{failures} failed" if failures else "all passed")
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    typer.run(main)
