"""`Service` beside the SDK's client: the same requests, results, errors, attempts and patience."""

from __future__ import annotations

import binascii
import datetime
import json
import random
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import boto3
import botocore.auth
import botocore.signers
import pytest
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError

import tap_stack
from tap_stack import Service, ServiceError

KEYS = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "secret", "aws_session_token": "tok"}
REGION, PATIENCE = "eu-west-1", 0.3
GET = ("get_item", {"TableName": "items", "Key": {"id": {"S": "täa ☕"}}, "ConsistentRead": True})


@dataclass
class Script:
    """What a server does with one request after the other, and what it was asked."""

    steps: list[Any]
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    connections: int = 0


def respond(status: int, body: Any = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    return status, content, {name.replace("_", "-"): value for name, value in headers.items()}


def error(code: str, message: str = "because", *, status: int = 400, **more: Any) -> Any:
    kind = f"com.amazonaws.dynamodb.v20120810#{code}"
    return respond(status, {"__type": kind, "message": message, **more})


class Handler(BaseHTTPRequestHandler):
    """Does the next step of its server's script; the last one for ever."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    script: Script

    def setup(self) -> None:
        super().setup()
        self.script.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.script.requests.append(({k.lower(): v for k, v in self.headers.items()}, body))
        steps = self.script.steps
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        if step == "hang":
            threading.Event().wait(3 * PATIENCE)
        if isinstance(step, str):  # "hang" and "hang up"
            self.close_connection = True
            return
        status, content, headers = step
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = "x-then-close" in headers

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def serve() -> Iterator[Callable[[list[Any]], tuple[str, Script]]]:
    """Starts servers that follow a script."""
    servers = []

    def start(steps: list[Any]) -> tuple[str, Script]:
        script = Script(list(steps))
        handler = type("Scripted", (Handler,), {"script": script})
        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}", script

    yield start
    for each in servers:
        each.shutdown()
        each.server_close()


@pytest.fixture(autouse=True)
def function(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a function, short of patience."""
    monkeypatch.setenv("AWS_REGION", REGION)
    for name, value in KEYS.items():
        monkeypatch.setenv(name.upper(), value)
    for name in ("AWS_ENDPOINT_URL", "_X_AMZN_TRACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", PATIENCE)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long they would have waited between attempts."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def own_client(url: str, monkeypatch: pytest.MonkeyPatch, name: str = "dynamodb") -> Any:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    return Service(name)


def sdk_client(url: str, name: str = "dynamodb") -> Any:
    config = Config(
        retries={"mode": "standard", "total_max_attempts": tap_stack.ATTEMPTS},
        connect_timeout=tap_stack.CONNECT_TIMEOUT_SECONDS, read_timeout=PATIENCE, proxies={},
    )  # fmt: skip
    return boto3.Session(**KEYS, region_name=REGION).client(name, endpoint_url=url, config=config)


def outcome(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
    """The result, or what is known of the error."""
    random.seed(7)  # the same jitter for both
    try:
        result = getattr(client, operation)(**arguments)
    except (ClientError, ServiceError) as failure:
        response = dict(failure.response)
        retries = response.pop("ResponseMetadata")["RetryAttempts"]
        if response["Error"]["Code"] == "ConnectionError":
            return "no answer"
        response.pop("message", None)  # the SDK has it once more for some errors
        if response["Error"]["Code"].isdigit():
            response["Error"]["Message"] = ""  # the SDK tells the status in words
        return response, retries
    except BotoCoreError:
        return "no answer"
    result.pop("ResponseMetadata", None)
    return result


ITEM: dict[str, Any] = {"Item": {"id": {"S": "tea"}, "n": {"N": "1"}}}
GOOD = respond(200, ITEM)
CRC = str(binascii.crc32(GOOD[1]))
SCRIPTS = {
    "a result": [GOOD],
    "a result with its checksum": [respond(200, ITEM, x_amz_crc32=CRC)],
    "nothing": [respond(200)],
    "a condition that failed": [error("ConditionalCheckFailedException", **ITEM)],
    "a transaction that failed": [
        error(
            "TransactionCanceledException",
            CancellationReasons=[{"Code": "None"}, {"Code": "ConditionalCheckFailed", **ITEM}],
        )
    ],
    "bad arguments": [error("ValidationException")],
    "throttled once": [error("ThrottlingException"), GOOD],
    "throttled always": [error("ProvisionedThroughputExceededException")],
    "a limit reached": [error("RequestLimitExceeded"), error("LimitExceededException"), GOOD],
    "a transaction in the way": [error("TransactionInProgressException"), GOOD],
    "an internal error": [error("InternalServerError", status=500), GOOD],
    "an internal error always": [error("InternalServerError", status=500)],
    "a balancer's page": [respond(503, b"<html>busy</html>"), GOOD],
    "a balancer's page always": [respond(502, b"<html>busy</html>")],
    "an expired token": [error("ExpiredTokenException")],
    "unknown keys": [error("UnrecognizedClientException")],
    "a clock that is wrong": [error("InvalidSignatureException", "Signature expired")],
    "no permission": [error("AccessDeniedException")],
    "a disabled key": [error("KMSInvalidStateException")],
    "a wrong checksum": [respond(200, ITEM, x_amz_crc32="1"), GOOD],
    "a wrong checksum always": [respond(200, ITEM, x_amz_crc32="1")],
    "half an answer": [respond(200, ITEM, content_length="10000", x_then_close="1"), GOOD],
    "silence": ["hang", GOOD],
    "silence always": ["hang"],
    "hanging up": ["hang up", GOOD],
    "hanging up always": ["hang up"],
    "no JSON": [respond(200, b"<html>")],
    "an empty success": [respond(200, b"")],
}


#: What is an error here -> what the SDK makes of it.
SAFER: dict[str, Any] = {"a wrong checksum always": ITEM, "no JSON": {}, "an empty success": {}}


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_does_what_the_sdk_does(
    script: str, serve: Any, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    sdk_url, sdk_script = serve(SCRIPTS[script])
    expected = outcome(sdk_client(sdk_url), *GET)
    waits = pauses.copy()
    pauses.clear()
    own_url, own_script = serve(SCRIPTS[script])
    found = outcome(own_client(own_url, monkeypatch), *GET)
    if script in SAFER:  # the SDK takes it for a result, and an empty one for "there is no item"
        assert (expected, found) == (SAFER[script], "no answer")
    else:
        assert found == expected
    assert len(own_script.requests) == len(sdk_script.requests)
    assert pauses == pytest.approx(waits)


@pytest.mark.parametrize("content", [b"null", b"[]", b"1", b'"{}"'])
def test_a_success_without_a_json_object_is_an_error(
    content: bytes, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, script = serve([respond(200, content)])
    with pytest.raises(ServiceError, match="it is no JSON object") as caught:
        own_client(url, monkeypatch).get_item()
    assert caught.value.transient and len(script.requests) == 1


CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("dynamodb", *GET),
    ("dynamodb", "put_item", {"TableName": "t", "Item": {"a": {"M": {"é": {"NULL": True}}}}}),
    ("dynamodb", "transact_write_items", {"TransactItems": [{"Put": {"TableName": "t", "Item": {}}}]}),
    ("ssm", "get_parameter", {"Name": "/key", "WithDecryption": True}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "operation", "arguments"), CALLS)
@pytest.mark.parametrize("token", ["tok", ""])
def test_it_sends_what_the_sdk_sends(
    name: str, operation: str, arguments: dict[str, Any], token: str, serve: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    sdk_url, sdk_script = serve([respond(200)])
    getattr(sdk_client(sdk_url, name), operation)(**arguments)
    own_url, own_script = serve([respond(200)])
    getattr(own_client(own_url, monkeypatch, name), operation)(**arguments)
    ((expected, body),), ((headers, found),) = sdk_script.requests, own_script.requests
    sent, expected_body = json.loads(found), json.loads(body)
    tokens = [each.pop("ClientRequestToken", "") for each in (sent, expected_body)]
    assert sent == expected_body
    assert bool(tokens[0]) == bool(tokens[1]) and len(tokens[0]) <= 36
    for each in ("x-amz-target", "content-type"):
        assert headers[each] == expected[each]
    assert headers.get("x-amz-security-token", "") == token
    assert headers["authorization"] == signed_by_the_sdk(name, own_url, headers, found, token)


def signed_by_the_sdk(name: str, url: str, headers: dict[str, str], body: bytes, token: str) -> str:
    """The authorization that the SDK's signer gives to the same request at the same moment."""
    when = datetime.datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ")
    request = AWSRequest("POST", f"{url}/", data=body)
    for each in ("content-type", "x-amz-target"):
        request.headers[each] = headers[each]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda **_: when)
        keys = Credentials("AKIA", "secret", token or None)
        botocore.auth.SigV4Auth(keys, name, REGION).add_auth(request)
    return str(request.headers["Authorization"])


def test_one_connection_serves_many_calls(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, script = serve([GOOD])
    service = own_client(url, monkeypatch)
    assert [service.get_item() for _ in range(5)] == [ITEM] * 5
    assert script.connections == 1


def test_a_connection_that_was_closed_while_idle_costs_no_attempt(
    serve: Any, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, script = serve([respond(200, ITEM, x_then_close="1")])
    service = own_client(url, monkeypatch)
    for _ in range(3):
        assert service.get_item() == ITEM
        threading.Event().wait(0.05)  # the server's end arrives
    assert (len(script.requests), script.connections, pauses) == (3, 3, [])


def test_a_service_that_keeps_failing_is_asked_less(
    serve: Any, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [error("InternalServerError", status=500)]
    requests = []
    for make in (sdk_client, lambda url: own_client(url, monkeypatch)):
        url, script = serve(failing)
        client = make(url)
        for _ in range(60):
            outcome(client, *GET)
        requests.append(len(script.requests))
    assert requests[0] == requests[1] == 60 + tap_stack.RETRY_TOKENS // tap_stack.RETRY_COST


def test_who_does_not_take_the_connection_is_not_waited_for(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        service = own_client(f"http://127.0.0.1:{nobody.getsockname()[1]}", monkeypatch)
        with pytest.raises(ServiceError, match=r"ConnectionError.*GetItem.*ConnectionRefused"):
            service.get_item()
    assert len(pauses) == tap_stack.ATTEMPTS - 1


def test_the_trace_of_the_call_goes_along(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=1-67;Parent=53;Sampled=1")
    url, script = serve([GOOD])
    own_client(url, monkeypatch).get_item()
    assert script.requests[0][0]["x-amzn-trace-id"] == "Root=1-67;Parent=53;Sampled=1"


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1", "us-gov-west-1", "cn-north-1"])
@pytest.mark.parametrize("name", ["dynamodb", "ssm"])
def test_the_endpoint_is_the_sdks(name: str, region: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", region)
    expected = boto3.Session(**KEYS, region_name=region).client(name).meta.endpoint_url
    assert "://".join(tap_stack.endpoint(name)) == expected


def test_the_signature_of_the_form_is_of_its_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET_NAME", "files-bucket")
    s3 = boto3.Session(**KEYS, region_name=REGION).client(
        "s3", config=Config(signature_version="s3v4")
    )
    fields = s3.generate_presigned_post(Bucket="b", Key="k")["fields"]
    scope = fields["x-amz-credential"].partition("/")[2]
    assert tap_stack.sign(fields["policy"], "secret", scope) == fields["x-amz-signature"]
