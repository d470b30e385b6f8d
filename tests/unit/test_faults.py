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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from botocore import xform_name
from botocore.exceptions import ReadTimeoutError

import tap_stack
from tap_stack import RecordsFailed, Service, ServiceError
from tests.fakes import FakeContext, FakeDynamoDB, FakeS3, client_error
from tests.unit.conftest import ENVIRONMENT, Api, Response, assert_problem
from tests.unit.test_file_pipeline import Pipeline, created, marked, removed
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

    @property
    def patience(self) -> float:
        """How long a call waits; where none succeeds, a tenth of the time is enough."""
        if self.does is silence:
            return PATIENCE / 10 if self.always else PATIENCE
        return HANGS


class Handler(BaseHTTPRequestHandler):
    """DynamoDB and SSM, as fakes, and what goes wrong with their calls."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    cloud: Cloud
    found: Mapping[str, str] = {}  # headers of an object of S3

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

    def do_GET(self) -> None:
        """S3's GetObject and HeadObject."""
        place, self.found = urlsplit(self.path), {}
        _, bucket, key = unquote(place.path).split("/", 2)
        wanted = {"Bucket": bucket, "Key": key, **dict(parse_qsl(place.query))}
        fault = self.cloud.next_fault()
        if fault and not fault.after:
            fault.does(self, b"")
            return
        version = wanted.get("versionId") or self.cloud.objects.history[key][-1]
        found = self.cloud.objects.objects.get((key, version))
        if not found:
            self.answer(b"", 404)
            return
        self.found = {"etag": '"e"', "x_amz_version_id": version}
        if fault:
            fault.does(self, found["body"])
        else:
            self.answer(found["body"], 200 if self.command == "HEAD" else 206)

    do_HEAD = do_GET  # noqa: N815 - as its base class wants it

    def refuse(self, code: str, status: int) -> None:
        """Sends an error, as the service words it."""
        content = json.dumps({"__type": f"x#{code}", "message": "arn:aws:secret"}).encode()
        if self.command != "POST":
            content = (
                f"<Error><Code>{code}</Code><Message>arn:aws:secret</Message></Error>".encode()
            )
            status = 503 if code in tap_stack.THROTTLING_CODES else max(status, 403)
        self.answer(content, status)

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        """Sends a response."""
        self.send_response(status)
        for name, value in {"content_length": str(len(content)), **self.found, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)

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
    return lambda handler, _: handler.refuse(code, status)


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
    handler.answer(b"<html>welcome</html>", 200 if handler.command == "POST" else 500)


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
    objects: FakeS3
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
        return copy.deepcopy((self.table.tables, self.objects.history))

    def restore(self, state: Any) -> None:
        """Goes back to a state."""
        self.table.tables, self.objects.history = copy.deepcopy(state)


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
    s3: Any = tap_stack._clients["s3"]
    made = Cloud(api, upload(api, "ann/f", b"two"), api.table, api.ssm, s3)
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
        monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", fault.patience)
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

    before, cloud.objects.before = cloud.state(), fail
    found = cloud.request(name)
    assert_problem(found, status)
    assert "secret" not in found.text
    assert cloud.state() == before
    cloud.objects.before = lambda *_: None
    assert cloud.request(name).status < 300


@pytest.mark.parametrize(
    ("name", "operation"),
    [("DELETE /files/{id}", "delete_object"), ("POST /files/{id}/versions", "copy_object")],
)
def test_what_s3_has_done_without_an_answer_is_503_and_can_be_repeated(
    name: str, operation: str, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = getattr(cloud.objects, operation)

    def lost(**arguments: Any) -> None:
        done(**arguments)
        raise ReadTimeoutError(endpoint_url="https://secret")

    (history,) = cloud.objects.history.values()
    before = len(history)
    with monkeypatch.context() as patched:
        patched.setattr(cloud.objects, operation, lost)
        assert_problem(cloud.request(name), 503)
    assert len(history) == before + 1
    assert cloud.request(name).status < 300 and len(history) == before + 2


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


#: What happened to a file of two versions -> its event.
EVENTS: dict[str, dict[str, Any]] = {
    "an upload": created("ann/f", "F1", "v2"),
    "a delete marker": marked("ann/f", "F1", "m2"),
    "a deletion": removed("ann/f", "F1", "v1"),
}


def recorded(cloud: Cloud) -> Any:
    """What the files table says, whatever revisions and shards it has."""
    pipeline = Pipeline()
    pipeline.table = cloud.table
    items = {
        key: {name: value for name, value in item.items() if name != "revision"}
        for key, item in cloud.table.files.items()
        if not key.startswith("totals#")
    }
    return items, pipeline.totals(), pipeline.stored()


Deliver = Callable[..., str]


@pytest.fixture
def deliver(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Deliver:
    """Gives an event to the files function, while a call has a fault: why it failed, or nothing."""
    clients, clock = {}, {"now": 0.0}
    for seconds in (HANGS, PATIENCE, PATIENCE / 10):
        monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", seconds)
        clients[seconds] = tap_stack.sdk_client.__wrapped__("s3")
    # Time passes in pauses alone, so that what goes on until the time is over does not take it.
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(time, "sleep", lambda pause: clock.update(now=clock["now"] + pause))

    def delivered(event: dict[str, Any], fault: Fault | None = None, at: int = 0) -> str:
        cloud.fault, cloud.at, cloud.calls = fault, at, 0
        seconds = fault.patience if fault else HANGS
        monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", seconds)
        monkeypatch.setitem(tap_stack._clients, "s3", clients[seconds])
        try:
            tap_stack.record_files({"Records": [event]}, FakeContext(HANGS))
        except RecordsFailed as failure:
            return str(failure)
        return ""

    return delivered


@pytest.mark.parametrize("name", EVENTS)
def test_under_each_fault_an_event_is_recorded_or_fails_and_is_recorded_when_it_comes_again(
    name: str, cloud: Cloud, deliver: Deliver, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.objects.put("ann/f", "v2", b"%PDF-1.7")
    if name == "a delete marker":
        cloud.objects.mark("ann/f", "m2")
    if name == "a deletion":
        cloud.objects.remove("ann/f", "v1")
    before = cloud.state()
    assert deliver(EVENTS[name]) == ""
    after, calls = recorded(cloud), cloud.calls
    assert calls >= 3
    for (what, fault), at in itertools.product(FAULTS.items(), range(calls)):
        cloud.restore(before)
        capsys.readouterr()
        if failed := deliver(EVENTS[name], fault, at):
            (line,) = capsys.readouterr().out.splitlines()
            assert json.loads(line)["FilesFailed"] == 1, (what, at)
            assert deliver(EVENTS[name]) == ""
        else:
            assert not fault.always or at, (what, at)
        assert recorded(cloud) == after, (what, at, failed)
