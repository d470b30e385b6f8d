"""What X-Ray's daemon receives about the calls of services, by both clients."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
from botocore.stub import Stubber

import tap_stack
from tests.unit.test_transport import (  # the same server, and the same calls of it
    GET,
    GOOD,
    error,
    function,  # noqa: F401
    own_client,
    pauses,  # noqa: F401
    respond,
    sdk_client,
    serve,  # noqa: F401
)

ROOT, PARENT = "1-581cf771-a006649127e371903a2de979", "53995c3f42cd8ad8"
HEADER = f"Root={ROOT};Parent={PARENT};Sampled=1;Lineage=1:a5c5a8f5:0"
TEXT = {"type": "string", "minLength": 1, "maxLength": 250}
ID = {"type": "string", "pattern": "^[0-9a-f]{16}$"}


def exactly(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """The schema of an object with these members."""
    members = {**required, **optional}
    names = list(required)
    return {
        "type": "object",
        "properties": members,
        "required": names,
        "additionalProperties": False,
    }


#: A subsegment that is sent alone: X-Ray developer guide, "Segment documents". `resource_names` and
#: `retries` are in the guide's example and in what AWS's own libraries send.
SCHEMA = exactly(
    {
        "type": {"const": "subsegment"},
        "id": ID,
        "trace_id": {"type": "string", "pattern": "^1-[0-9a-f]{8}-[0-9a-f]{24}$"},
        "parent_id": ID,
        "name": {"type": "string", "pattern": r"^[\w\s.:/%&#=+\\\-@]{1,200}$"},
        "namespace": {"const": "aws"},
        "start_time": {"type": "number"},
        "end_time": {"type": "number"},
        "aws": exactly(
            {"operation": TEXT, "region": TEXT, "retries": {"type": "integer", "minimum": 0}},
            request_id=TEXT,
            table_name=TEXT,
            resource_names={"type": "array", "items": TEXT, "minItems": 1, "uniqueItems": True},
        ),
    },
    http=exactly({"response": exactly({"status": {"type": "integer"}})}),
    error={"const": True},
    throttle={"const": True},
    fault={"const": True},
    cause=exactly(
        {
            "exceptions": {
                "type": "array",
                "minItems": 1,
                "items": exactly(
                    {"id": ID, "type": TEXT, "message": {**TEXT, "minLength": 0}},
                    remote={"type": "boolean"},
                ),
            }
        }
    ),
)  # fmt: skip


class Daemon:
    """X-Ray's daemon, as far as a function sees it."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(0)
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"

    def received(self) -> list[dict[str, Any]]:
        """The subsegments of all packets so far; fails if one is not as X-Ray documents it."""
        found: list[dict[str, Any]] = []
        while True:
            try:
                packet = self.socket.recv(65_536)
            except BlockingIOError:
                return found
            header, _, document = packet.partition(b"\n")
            assert json.loads(header) == {"format": "json", "version": 1}
            found.append(json.loads(document))
            jsonschema.validate(found[-1], SCHEMA)
            assert found[-1]["start_time"] <= found[-1]["end_time"]


@pytest.fixture
def trace_to(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets a daemon's address and an invocation's trace."""

    def set_up(address: str, header: str = HEADER) -> None:
        tap_stack.xray_daemon.cache_clear()
        monkeypatch.setenv("AWS_XRAY_DAEMON_ADDRESS", address)
        monkeypatch.setenv("_X_AMZN_TRACE_ID", header)

    yield set_up
    if opened := tap_stack.xray_daemon():
        opened.close()
    tap_stack.xray_daemon.cache_clear()


@pytest.fixture
def daemon(trace_to: Callable[..., None]) -> Iterator[Daemon]:
    """A daemon that the functions know, and a sampled invocation."""
    daemon = Daemon()
    with daemon.socket:
        trace_to(daemon.address)
        yield daemon


def own(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    return own_client(url, monkeypatch)


def sdk(url: str, _: pytest.MonkeyPatch) -> Any:
    return tap_stack.traced(sdk_client(url))


def told(subsegment: dict[str, Any]) -> dict[str, Any]:
    """What a subsegment says about the call's outcome."""
    found: dict[str, Any] = {
        key: subsegment[key] for key in ("error", "throttle", "fault") if key in subsegment
    }
    for exception in subsegment.get("cause", {}).get("exceptions", []):
        found |= {"type": exception["type"], "remote": exception["remote"]}
    status = subsegment.get("http", {}).get("response", {}).get("status")
    return {**found, "status": status, "retries": subsegment["aws"]["retries"]}


THROTTLED = error("ProvisionedThroughputExceededException")
OUTCOMES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "a result": ([GOOD], {"status": 200, "retries": 0}),
    "throttled once": ([THROTTLED, GOOD], {"status": 200, "retries": 1}),
    "throttled always": (
        [THROTTLED],
        {"error": True, "throttle": True, "status": 400, "retries": 2, "remote": True,
         "type": "ProvisionedThroughputExceededException"},
    ),
    "a condition that failed": (
        [error("ConditionalCheckFailedException")],
        {"error": True, "status": 400, "retries": 0, "remote": True,
         "type": "ConditionalCheckFailedException"},
    ),
    "an internal error": (
        [error("InternalServerError", status=500)],
        {"fault": True, "status": 500, "retries": 2, "remote": True, "type": "InternalServerError"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("make", [own, sdk])
def test_a_call_is_one_subsegment_with_its_outcome(
    make: Any, outcome: str, serve: Any, pauses: Any, daemon: Daemon,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    steps, expected = OUTCOMES[outcome]
    client = make(serve(steps)[0], monkeypatch)
    operation, arguments = GET
    try:
        getattr(client, operation)(**arguments)
    except Exception as failure:  # noqa: BLE001 - both clients' errors
        assert tap_stack.error_code(failure) == expected["type"]
    (subsegment,) = daemon.received()
    assert told(subsegment) == expected
    assert (subsegment["trace_id"], subsegment["parent_id"]) == (ROOT, PARENT)
    assert subsegment["name"] == "dynamodb"
    assert subsegment["aws"]["operation"] == "GetItem"
    assert subsegment["aws"]["region"] == "eu-west-1"
    assert subsegment["aws"]["table_name"] == "items"
    assert subsegment["aws"]["resource_names"] == ["items"]
    assert "täa" not in json.dumps(subsegment, ensure_ascii=False)  # the key that it read


@pytest.mark.parametrize("make", [own, sdk])
def test_a_call_without_a_response_is_a_fault_without_a_status(
    make: Any, serve: Any, pauses: Any, daemon: Daemon, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    client = make(serve([error("InternalServerError", status=500), "hang up"])[0], monkeypatch)
    with pytest.raises(Exception, match="onnection"):
        client.get_item(**GET[1])
    (subsegment,) = daemon.received()
    assert subsegment["fault"] is True
    assert "http" not in subsegment
    assert subsegment["cause"]["exceptions"][0]["remote"] is False


@pytest.mark.parametrize("make", [own, sdk])
def test_the_request_id_is_the_services(
    make: Any, serve: Any, daemon: Daemon, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    client = make(serve([respond(200, x_amzn_RequestId="UBQNSO5AEM8T4FDA")])[0], monkeypatch)
    client.get_item(**GET[1])
    assert daemon.received()[0]["aws"]["request_id"] == "UBQNSO5AEM8T4FDA"


def test_each_call_has_an_id_of_its_own(
    serve: Any, daemon: Daemon, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    client = own_client(serve([GOOD])[0], monkeypatch)
    for _ in range(20):
        client.get_item(**GET[1])
    assert len({each["id"] for each in daemon.received()}) == 20


def write(table: str) -> dict[str, Any]:
    return {"Put": {"TableName": table, "Item": {"secret": {"S": "of the caller"}}}}


NAMED: list[tuple[str, str, dict[str, Any], list[str] | None, str | None]] = [
    ("dynamodb", "transact_write_items", {"TransactItems": [write("a"), write("a")]}, ["a"], "a"),
    ("dynamodb", "transact_write_items", {"TransactItems": [write("a"), write("b")]}, ["a", "b"],
     None),
    ("ssm", "get_parameter", {"Name": "/key", "WithDecryption": True}, ["/key"], None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "operation", "arguments", "resources", "table"), NAMED)
def test_a_subsegment_names_what_the_call_is_about_and_no_data(
    name: str, operation: str, arguments: dict[str, Any], resources: Any, table: Any,
    serve: Any, daemon: Daemon, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> None:  # fmt: skip
    client = own_client(serve([respond(200)])[0], monkeypatch, name)
    getattr(client, operation)(**arguments)
    (subsegment,) = daemon.received()
    assert subsegment["name"] == name
    assert subsegment["aws"].get("resource_names") == resources
    assert subsegment["aws"].get("table_name") == table
    assert "of the caller" not in json.dumps(subsegment)


HEAD = {"Bucket": "files-bucket", "Key": "ann/a.txt"}
#: Service, operation, arguments -> its name in the API, what it is about.
SDK_CALLS: list[tuple[str, str, dict[str, Any], str, list[str] | None]] = [
    ("s3", "head_object", HEAD, "HeadObject", ["files-bucket"]),
    ("rds", "delete_db_snapshot", {"DBSnapshotIdentifier": "s"}, "DeleteDBSnapshot", ["s"]),
    ("rds", "describe_db_snapshots", {}, "DescribeDBSnapshots", None),
]


@pytest.mark.parametrize(("name", "operation", "arguments", "action", "resources"), SDK_CALLS)
@pytest.mark.parametrize("status", [200, 403, 503])
def test_calls_of_the_sdk_are_traced_as_well(
    name: str, operation: str, arguments: dict[str, Any], action: str, resources: Any, status: int,
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(tap_stack, "_clients", {})
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    tap_stack.sdk_client.cache_clear()
    client = tap_stack.client(name)
    with Stubber(client) as stub:
        if status == 200:
            stub.add_response(operation, {"ResponseMetadata": {"HTTPStatusCode": 200}})
            getattr(client, operation)(**arguments)
        else:
            stub.add_client_error(operation, "Refused", http_status_code=status)
            with pytest.raises(client.exceptions.ClientError, match="Refused"):
                getattr(client, operation)(**arguments)
    (subsegment,) = daemon.received()
    assert (subsegment["name"], subsegment["aws"]["operation"]) == (name, action)
    assert subsegment["aws"].get("resource_names") == resources
    assert subsegment["http"]["response"]["status"] == status
    kind = {200: None, 403: "error", 503: "fault"}[status]
    assert [each for each in ("error", "fault") if each in subsegment] == [kind] * bool(kind)
    assert "a.txt" not in json.dumps(subsegment)


@pytest.mark.parametrize(
    "header",
    ["", HEADER.replace("Sampled=1", "Sampled=0"), HEADER.replace(";Sampled=1", "")],
)
def test_an_invocation_that_is_not_sampled_sends_nothing(
    header: str, serve: Any, daemon: Daemon, trace_to: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    trace_to(daemon.address, header)
    own_client(serve([GOOD])[0], monkeypatch).get_item(**GET[1])
    assert daemon.received() == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:1",
        "",
        ":",
        "2000",
        "127.0.0.1",
        "127.0.0.1:x",
        "127.0.0.1:99999999",
        "[::1]:2000",
    ],
)
def test_whatever_the_daemon_is_calls_go_on(
    address: str, serve: Any, trace_to: Any, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    trace_to(address)
    client = own_client(serve([GOOD])[0], monkeypatch)
    for _ in range(4):
        assert client.get_item(**GET[1])["Item"]


def test_a_daemon_that_reads_nothing_is_not_waited_for(
    serve: Any, trace_to: Any, daemon: Daemon, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    opened = tap_stack.xray_daemon()
    assert opened and not opened.getblocking()
    daemon.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    client = own_client(serve([GOOD])[0], monkeypatch)
    for _ in range(50):
        client.get_item(**GET[1])
    assert len(daemon.received()) < 50


def test_a_subsegment_fits_into_a_packet_whatever_the_service_says(
    serve: Any, pauses: Any, daemon: Daemon, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    client = own_client(serve([error("ValidationException", "☕" * 100_000)])[0], monkeypatch)
    with pytest.raises(tap_stack.ServiceError):
        client.get_item(**GET[1])
    (subsegment,) = daemon.received()
    assert re.fullmatch("☕{250}", subsegment["cause"]["exceptions"][0]["message"])
