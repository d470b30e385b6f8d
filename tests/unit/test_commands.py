"""Commands of the local cloud as functions: what they print, and what they say of a wrong name."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from taplocal import access, commands, session
from taplocal.errors import TapLocalError

OUTPUTS = {"table_name": "tap-stack-items-dev", "api_url": "http://127.0.0.1:4566"}


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "opened", lambda *_: SimpleNamespace(outputs=OUTPUTS))


def printed(capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    commands.outputs(**options)
    return capsys.readouterr().out


def test_one_output_is_printed_alone_and_all_by_their_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert printed(capsys, name="table_name") == "tap-stack-items-dev\n"
    assert json.loads(printed(capsys, name="table_name", as_json=True)) == "tap-stack-items-dev"
    assert json.loads(printed(capsys, as_json=True)) == OUTPUTS
    assert all(each in printed(capsys) for each in [*OUTPUTS, *OUTPUTS.values()])


@pytest.mark.parametrize(
    ("name", "hint"),
    [("table_nam", "did you mean table_name"), ("x", "use one of table_name, api_url")],
)
def test_an_output_that_does_not_exist_is_an_error_with_the_nearest_one(
    name: str, hint: str
) -> None:
    with pytest.raises(TapLocalError, match=f'no output "{name}": {hint}'):
        commands.outputs(name)


@pytest.mark.parametrize("as_json", [True, False])
def test_an_error_is_told_on_standard_error_and_as_json_if_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.setattr(sys, "argv", ["taplocal", "status", *(["--json"] if as_json else [])])
    with pytest.raises(SystemExit) as ended:
        commands._fail("it is away", 3)
    shown, said = capsys.readouterr()
    assert (ended.value.code, said) == (3, "error: it is away\n")
    assert (json.loads(shown) if shown else None) == ({"error": "it is away"} if as_json else None)


class Records(BaseHTTPRequestHandler):
    """Redirects each request, and keeps what it said."""

    asked: tuple[str, Message, bytes]

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        Records.asked = self.path, self.headers, content
        self.send_response(303)
        self.send_header("Location", "/other")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An API that keeps what it is asked."""
    with HTTPServer(("127.0.0.1", 0), Records) as server:
        threading.Thread(target=server.serve_forever).start()
        deployed = SimpleNamespace(api_url=f"http://127.0.0.1:{server.server_port}/a")
        monkeypatch.setattr(session, "opened", lambda *_: SimpleNamespace(state=deployed))
        monkeypatch.setattr(access, "machine_token", lambda *_: "secret")
        yield
        server.shutdown()


def called(*arguments: str) -> Any:
    return commands.command().main(["call", "POST", *arguments], standalone_mode=False)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/items?name=green tea", "/a/items?name=green%20tea"),
        ("/items?name=grün", "/a/items?name=gr%C3%BCn"),
        ("items/a%2Fb;c?from=1&x=[$!'()*+,@:~]", "/a/items/a%2Fb;c?from=1&x=[$!'()*+,@:~]"),
        ("/items?a=\udcff", "/a/items?a=%FF"),  # as Python has an argument that is no UTF-8
    ],
)
def test_a_call_may_have_any_path_headers_and_body(api: None, path: str, sent: str) -> None:
    names = ["token", "body", "path", "method", "session", "headers", "Content-Type"]
    called(path, "\udcff", *(x for name in names for x in ("-H", f"{name}: of {name}")))
    asked, headers, content = Records.asked
    assert (asked, content) == (sent, b"\xff")
    assert headers["Authorization"] == "Bearer secret"
    assert [headers[each] for each in names] == [f"of {each}" for each in names]


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("nonsense", "--header takes 'name: value', not \"nonsense\""),
        (": x", "--header takes 'name: value', not \": x\""),
        ("a: b\nc", "failed: Invalid header value"),
        ("a: \u2014", "failed: 'latin-1' codec can't encode"),
    ],
)
def test_a_header_that_http_cannot_carry_is_an_error(api: None, header: str, why: str) -> None:
    with pytest.raises(TapLocalError, match=why):
        called("/items", "{}", "-H", header)
