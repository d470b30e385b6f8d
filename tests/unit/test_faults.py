"""Each operation of the API under each fault of what it calls, over real connections.

The tables are fakes behind a server that fails before or after it did what it was asked. Whatever
happens, a caller gets the right response, or 503 or 500, and the table holds all of a write or
nothing of it.
"""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from botocore import xform_name
from botocore.exceptions import ReadTimeoutError

import tap_stack
from tap_stack import Service, ServiceError
from tests.fakes import FakeContext, FakeDynamoDB, client_error
from tests.unit.conftest import ENVIRONMENT, Api, Response, assert_problem
from tests.unit.test_files import upload
from tests.unit.test_transport import HANGS, PATIENCE

NOW = "2026-11-21T10:00:00.000000Z"
#: Route -> a request of it; {file} is a file's id, {next} the token of the second page of items.
REQUESTS: dict[str, tuple[str, Any, dict[str, str]]] = {
    "POST /items": ("/items", {"id": "new", "category": "c"}, {}),
    "POST /items once": ("/items", {"n": 1}, {"idempotency-key": "k"}),
    "GET /items/{id}": ("/items/a", None, {}),
    "PUT /items/{id}": ("/items/a", {"n": 2}, {"if-match": "*"}),
    "PATCH /items/{id}": ("/items/a", {"m": 2}, {}),
    "DELETE /items/{id}": ("/items/a", None, {}),
    "GET /items": ("/items?category=c&limit=1", None, {}),
    "GET /items next": ("/items?next={next}", None, {}),
    "GET /files": ("/files", None, {}),
    "GET /files/{id}": ("/files/{file}", None, {}),
    "GET /files/{id}/content": ("/files/{file}/content", None, {}),
    "GET /files/totals": ("/files/totals?from=2026-11-21&to=2026-11-21", None, {}),
    "GET /files/report": ("/files/report?from=2026-11-01&to=2026-11-30", None, {}),
    "DELETE /files/{id}": ("/files/{file}", None, {}),
    "POST /files/{id}/versions": ("/files/{file}/versions", {"version_id": "v0"}, {}),
}
READS = {each for each in REQUESTS if each.startswith("GET")}


@dataclass
class Fault:
    """What goes wrong with a call, before the table did what it was asked or after it."""

    does: Callable[[Handler, bytes], None]
    after: bool = False
    always: bool = False
    status: int = 0  # of the response; 0: that of a day without faults


class Handler(BaseHTTPRequestHandler):
    """DynamoDB and SSM, as fakes, and what goes wrong with their calls."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    cloud: Cloud

    def do_POST(self) -> None:
        arguments = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prefix, _, action = self.headers["x-amz-target"].partition(".")
        fault = self.cloud.next_fault()
        if fault and not fault.after:
            fault.does(self, b"{}")
            return
        arguments.pop("ClientRequestToken", None)
        fake = self.cloud.table if prefix.startswith("DynamoDB") else self.cloud.ssm
        try:
            status, result = 200, getattr(fake, xform_name(action))(**arguments) or {}
        except ServiceError as failure:
            more = dict(failure.response)
            error, _ = more.pop("Error"), more.pop("ResponseMetadata")
            status, result = 400, {"__type": f"x#{error['Code']}", "message": "", **more}
        content = json.dumps(result).encode()
        if fault:
            fault.does(self, content)
        else:
            self.answer(content, status)

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        """Sends a response."""
        self.send_response(status)
        for name, value in {"content_length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def end(self, reset: bool = False) -> None:
        """Closes the connection, with FIN or RST."""
        self.close_connection = True
        if reset:
            lingering = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingering)
            self.connection.close()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def error(code: str, status: int = 400) -> Callable[[Handler, bytes], None]:
    content = json.dumps({"__type": f"x#{code}", "message": "arn:aws:secret"}).encode()
    return lambda handler, _: handler.answer(content, status)


def hang_up(handler: Handler, _: bytes) -> None:
    handler.end()


def reset(handler: Handler, _: bytes) -> None:
    handler.end(reset=True)


def silence(handler: Handler, _: bytes) -> None:
    handler.cloud.released.wait(HANGS)
    handler.end()


def half(handler: Handler, content: bytes) -> None:
    handler.answer(content[: len(content) // 2], content_length=str(len(content)))
    handler.end()


def wrong_checksum(handler: Handler, content: bytes) -> None:
    handler.answer(content, x_amz_crc32="1")


def page(handler: Handler, _: bytes) -> None:
    handler.answer(b"<html>busy</html>", 503)


def no_json(handler: Handler, _: bytes) -> None:
    handler.answer(b"<html>welcome</html>")


THROTTLED, INTERNAL = error("ThrottlingException"), error("InternalServerError", 500)
FAULTS: dict[str, Fault] = {
    # Which pass: the caller notices nothing.
    "throttled once": Fault(THROTTLED),
    "an internal error once": Fault(INTERNAL),
    "an internal error after the write": Fault(INTERNAL, after=True),
    "a balancer's page once": Fault(page),
    "a connection that ends": Fault(hang_up),
    "a connection that ends after the write": Fault(hang_up, after=True),
    "a connection that is reset": Fault(reset),
    "a connection that is reset after the write": Fault(reset, after=True),
    "half a response": Fault(half, after=True),
    "a response that was changed": Fault(wrong_checksum, after=True),
    "silence after the write": Fault(silence, after=True),
    # Which do not: 503, for who tries again.
    "throttled always": Fault(THROTTLED, always=True, status=503),
    "internal errors always": Fault(INTERNAL, always=True, status=503),
    "pages of a balancer always": Fault(page, always=True, status=503),
    "connections that end": Fault(hang_up, always=True, status=503),
    "connections that end after the writes": Fault(hang_up, after=True, always=True, status=503),
    "silence always": Fault(silence, always=True, status=503),
    "no JSON": Fault(no_json, always=True, status=503),
    # Which another attempt would not mend: 500, and an alarm.
    "no permission": Fault(error("AccessDeniedException"), always=True, status=500),
    "a disabled key": Fault(error("KMSInvalidStateException"), always=True, status=500),
    "no table": Fault(error("ResourceNotFoundException"), always=True, status=500),
    "a clock that is wrong": Fault(error("InvalidSignatureException"), always=True, status=500),
    "expired credentials": Fault(error("ExpiredTokenException"), always=True, status=500),
}


@dataclass
class Cloud:
    """The fakes of an API behind a server, and the fault of its next calls."""

    api: Api
    file: str
    table: FakeDynamoDB
    ssm: Any
    next: str = ""
    fault: Fault | None = None
    at: int = 0  # the call that has the fault
    calls: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    def next_fault(self) -> Fault | None:
        """The fault of a call, if it has one."""
        number, self.calls = self.calls, self.calls + 1
        due = self.fault and (number >= self.at if self.fault.always else number == self.at)
        return self.fault if due else None

    def request(self, name: str, fault: Fault | None = None, at: int = 0) -> Response:
        """The response to one of REQUESTS, while a call has a fault."""
        self.fault, self.at, self.calls = fault, at, 0
        tap_stack._paging.update(keys=[], read=float("-inf"), tried=float("-inf"))
        return self.api.raw(*self.sent(name))

    def sent(self, name: str) -> tuple[str, str, str, str | None, dict[str, str]]:
        """Method, path, query, body and headers of one of REQUESTS."""
        path, body, headers = REQUESTS[name]
        path, _, query = path.format(file=self.file, next=self.next).partition("?")
        text = None if body is None else json.dumps(body)
        method, sent = name.partition(" ")[0], {"content-type": "application/json", **headers}
        return method, path, query, text, sent

    def kill(self, name: str, after: bool, at: int) -> None:
        """Sends one of REQUESTS to a process of its own, which dies at a call."""
        event = self.api.event(*self.sent(name))
        keys = (*ENVIRONMENT, "AWS_ENDPOINT_URL")
        environment = {key: os.environ[key] for key in keys}
        forks = multiprocessing.get_context("forkserver")
        forks.set_forkserver_preload([__name__])
        process = forks.Process(target=function, args=(environment, event))

        def die(handler: Handler, _: bytes) -> None:
            while process.pid is None:
                time.sleep(0.001)
            process.kill()
            handler.end()

        self.fault, self.at, self.calls = Fault(die, after=after), at, 0
        process.start()
        process.join(HANGS)
        assert process.exitcode == -signal.SIGKILL

    def contents(self) -> list[str]:
        """The items without ids, times and revisions, which each attempt may have anew."""
        kept = ("content", "version", "fingerprint")
        items = self.table.items.values()
        return sorted(json.dumps({name: item.get(name) for name in kept}) for item in items)

    def state(self) -> Any:
        """All that is stored."""
        s3: Any = tap_stack._clients["s3"]
        return copy.deepcopy((self.table.tables, s3.history))

    def restore(self, state: Any) -> None:
        """Goes back to a state."""
        self.table.tables, tap_stack._clients["s3"].history = copy.deepcopy(state)


def function(environment: dict[str, str], event: dict[str, Any]) -> None:
    """The api function in a process of its own."""
    os.environ.update(environment)
    tap_stack.api(event, FakeContext())


@pytest.fixture
def cloud(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """An API with two items and a file of two versions, whose calls go to a server."""
    monkeypatch.setattr(tap_stack, "now", lambda: NOW)
    monkeypatch.setattr(time, "time", lambda: 1_795_255_200.0)
    for name in ("a", "b"):
        assert api("POST", "/items", {"id": name, "category": "c", "n": 1}).status == 201
    upload(api, "ann/f", b"one")
    made = Cloud(api, upload(api, "ann/f", b"two"), api.table, api.ssm)
    made.next = api("GET", "/items?limit=1").json["next"]
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Faulty", (Handler,), {"cloud": made}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(tap_stack, "CONNECT_TIMEOUT_SECONDS", HANGS)  # on a busy machine
    monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", HANGS)
    for name in ("dynamodb", "ssm"):
        monkeypatch.setitem(tap_stack._clients, name, Service(name))
    yield made
    made.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def ids(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the ids of the service the same in each run; begins again when it is called."""
    numbers = itertools.count()

    def again() -> None:
        nonlocal numbers
        numbers = itertools.count()

    monkeypatch.setattr(tap_stack, "new_id", lambda: f"id-{next(numbers)}")
    return again


@pytest.mark.parametrize("name", REQUESTS)
def test_under_each_fault_a_caller_knows_and_the_table_holds_all_or_nothing(
    name: str, cloud: Cloud, ids: Callable[[], None], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = cloud.state()
    good = cloud.request(name)
    assert good.status < 400, good.text
    after, calls = cloud.state(), cloud.calls
    assert calls and (before != after) == (name not in READS)
    for (what, fault), at in itertools.product(FAULTS.items(), range(calls)):
        cloud.restore(before)
        ids()
        capsys.readouterr()
        if fault.does is silence:  # no call is to succeed in a tenth of the time
            patience = PATIENCE / 10 if fault.always else PATIENCE
            monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", patience)
        found = cloud.request(name, fault, at)
        monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", HANGS)
        (line,) = capsys.readouterr().out.splitlines()
        if fault.status:
            assert found.status == fault.status, (what, at, line)
            assert_problem(found, fault.status)
            assert "secret" not in found.text
            assert ("retry-after" in found.headers) == (fault.status == 503), what
            assert json.loads(line)["error"]
        else:
            assert (found.status, found.text) == (good.status, good.text), (what, at)
        whole = after if not fault.status or (fault.after and at == calls - 1) else before
        assert cloud.state() in (before, whole), (what, at)
        assert fault.status or cloud.state() == after, (what, at)


#: Write -> what its repetition is answered, when the process died after it was done.
REPEATED = {
    "POST /items": 409,
    "POST /items once": 201,
    "PUT /items/{id}": 200,
    "PATCH /items/{id}": 200,
    "DELETE /items/{id}": 404,
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_process_that_dies_at_a_call_leaves_all_of_a_write_or_nothing(
    name: str, cloud: Cloud, ids: Callable[[], None]
) -> None:
    start, before = cloud.state(), cloud.contents()
    good = cloud.request(name)
    after, calls = cloud.contents(), cloud.calls
    for at, died_after in itertools.product(range(calls), (False, True)):
        cloud.restore(start)
        cloud.kill(name, died_after, at)
        written = died_after and at == calls - 1
        assert cloud.contents() == (after if written else before)
        again = cloud.request(name)
        assert again.status == (REPEATED[name] if written else good.status), again.text
        if not written or REPEATED[name] != 200:  # a repeated change is one version more
            assert cloud.contents() == after


@pytest.mark.parametrize("name", ["DELETE /files/{id}", "POST /files/{id}/versions"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (client_error("SlowDown", "S3"), 503),
        (client_error("503", "S3"), 503),
        (ReadTimeoutError(endpoint_url="https://secret"), 503),
        (client_error("AccessDenied", "S3", "arn:aws:secret"), 500),
        (client_error("KMS.DisabledException", "S3", "arn:aws:secret"), 500),
    ],
    ids=str,
)
def test_when_s3_fails_a_caller_knows_and_nothing_is_changed(
    name: str, error: Exception, status: int, cloud: Cloud
) -> None:
    def fail(*_: Any) -> None:
        raise error

    before, s3 = cloud.state(), tap_stack._clients["s3"]
    s3.before = fail
    found = cloud.request(name)
    assert_problem(found, status)
    assert "secret" not in found.text
    assert cloud.state() == before
    s3.before = lambda *_: None
    assert cloud.request(name).status < 300


@pytest.mark.parametrize("hours", [-25, -1, 1, 25])
def test_a_container_whose_clock_is_wrong_loses_and_repeats_nothing(
    hours: int, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that respond in turns, one is wrong by so much."""
    real, wrong = time.time(), itertools.cycle((False, True))
    clock = {"now": real}
    monkeypatch.setattr(time, "time", lambda: clock["now"])
    monkeypatch.setattr(time, "time_ns", lambda: int(clock["now"] * 1e9))

    def call(method: str, path: str, body: Any = None, **headers: str) -> Response:
        clock["now"] = real + 3_600 * hours * next(wrong)
        return api(method, path, body, **headers)

    made = {call("POST", "/items", {"n": n}).json["id"] for n in range(6)}
    for order in ("asc", "desc"):
        seen, path = list[str](), f"/items?limit=1&order={order}"
        while path:
            listed = call("GET", path)
            seen += [each["id"] for each in listed.json["items"]]
            path = listed.headers.get("link", "").partition(">")[0].removeprefix("<")
        assert sorted(seen) == sorted(made)
    for item in made:
        assert call("PATCH", f"/items/{item}", {"m": 1}).json["version"] == 2
    if hours < 24:  # an Idempotency-Key is good for a day
        first = call("POST", "/items", {"n": 1}, idempotency_key="k")
        for _ in range(2):
            assert call("POST", "/items", {"n": 1}, idempotency_key="k").text == first.text
