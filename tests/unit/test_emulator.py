"""How the emulator is found, on a machine whose requests to elsewhere go through a proxy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from taplocal import emulator, keeper, web
from taplocal.web import agent, supervisor

IDENTITY = b"""<GetCallerIdentityResponse><GetCallerIdentityResult><Account>000000000000</Account>
</GetCallerIdentityResult></GetCallerIdentityResponse>"""


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.give(b'{"services": {}}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.give(IDENTITY)

    def give(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where something answers as an emulator; the proxy of all other requests is away."""
    for name in "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY":
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in "no_proxy", "NO_PROXY":
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_no_proxy_is_between_the_emulator_and_those_who_ask_it(url: str) -> None:
    found = emulator.Emulator(url, "marker", 0, "key", "secret")
    assert found.healthy()
    assert found.takes_its_keys()
    sts = supervisor.Emulator(url, "key", "secret").client("sts", "us-east-1")
    assert sts.get_caller_identity()["Account"] == emulator.ACCOUNT
    agent.send(f"{url}/", b"{}", {"X-Amz-Target": "Logs_20140328.PutLogEvents"})


def test_a_stopped_emulator_leaves_nothing_of_what_it_had(tmp_path: Path) -> None:
    for name in "emulator.json", "emulator.log", "traces.jsonl", "debug.json", web.LOG:
        (tmp_path / name).write_text("{}")
    emulator.record(tmp_path, emulator.Emulator("http://127.0.0.1:1", "marker"))
    for folder in tmp_path / "tmp", tmp_path / keeper.STATE, web.home(tmp_path):
        folder.mkdir(parents=True)
    emulator.stop(tmp_path)
    assert not list(tmp_path.iterdir())
