"""`Service` beside the SDK's client: the same requests, results, errors, attempts and patience."""

from __future__ import annotations

import binascii
import datetime
import json
import random
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import boto3
import botocore.auth
import botocore.signers
import pytest
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import DEFAULT_CA_BUNDLE
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import load_pem_x509_certificate

import tap_stack
from http_connection import within
from tap_stack import CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS, Service, ServiceError
from tests.local.postgres import certificate
from tests.unit.conftest import Api, assert_problem

KEYS = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "secret", "aws_session_token": "tok"}
REGION, PATIENCE = "eu-west-1", 0.3
SESSION = boto3.Session(**KEYS, region_name=REGION)  # one, as it reads each service's model once
HANGS = 60  # seconds after which a call will not end any more
GET = ("get_item", {"TableName": "items", "Key": {"id": {"S": "täa ☕"}}, "ConsistentRead": True})


@dataclass
class Script:
    """What a server does with one request after the other, and what it was asked."""

    steps: list[Any]
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    connections: int = 0
    released: threading.Event = field(default_factory=threading.Event)


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
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        self.script.requests.append(({k.lower(): v for k, v in self.headers.items()}, body))
        steps = self.script.steps
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        if step == "hang":
            self.script.released.wait()
        if isinstance(step, list):  # bytes as they are, piece by piece; None closes
            for piece in step:
                self.close_connection = piece is None
                self.wfile.write(piece or b"")
                self.wfile.flush()
                threading.Event().wait(0.01)
            return
        if step == "drip":
            self.send_response(200)
            while not self.script.released.wait(0.02):
                self.wfile.write(b"x-drop: of water\r\n")
                self.wfile.flush()
            self.close_connection = True
            return
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

    def do_PUT(self) -> None:
        self.do_POST()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[str, Script]]]:
    """Starts servers that follow a script; with a certificate, over TLS."""
    servers = []
    scripts = []

    def start(
        steps: list[Any], tls: ssl.SSLContext | None = None, family: int = socket.AF_INET
    ) -> tuple[str, Script]:
        script = Script(list(steps))
        scripts.append(script)
        handler = type("Scripted", (Handler,), {"script": script})
        kind = type("Server", (socketserver.ThreadingTCPServer,), {"address_family": family})
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        server = kind((host, 0), handler)
        server.daemon_threads = True
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        servers.append(server)
        shown = host if family == socket.AF_INET else f"[{host}]"
        return f"http{'s' if tls else ''}://{shown}:{server.server_address[1]}", script

    yield start
    for script in scripts:
        script.released.set()
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
    monkeypatch.setattr(tap_stack, "CONNECT_TIMEOUT_SECONDS", HANGS)  # on a busy machine
    monkeypatch.setattr(tap_stack, "jitter", random.random)


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
        connect_timeout=CONNECT_TIMEOUT_SECONDS, read_timeout=PATIENCE, proxies={},
    )  # fmt: skip
    return SESSION.client(name, endpoint_url=url, config=config)


def outcome(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
    """The result, or what is known of the error."""
    random.seed(7)  # the same jitter for both; the SDK's is `random.random`
    try:
        result = getattr(client, operation)(**arguments)
    except (ClientError, ServiceError) as failure:
        return outcome_of(failure)
    except BotoCoreError:
        return "no answer"
    result.pop("ResponseMetadata", None)
    return result


def outcome_of(failure: Any) -> Any:
    """What is known of an error, and after how many attempts more."""
    response = dict(failure.response)
    retries = response.pop("ResponseMetadata")["RetryAttempts"]
    if response["Error"]["Code"] == "ConnectionError":
        return "no answer"
    response.pop("message", None)  # the SDK has it once more for some errors
    if response["Error"]["Code"].isdigit():
        response["Error"]["Message"] = ""  # the SDK tells the status in words
    return response, retries


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
    "an item of a transaction": [error("TransactionConflictException")],
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


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_sdk_in_its_place_has_the_same_results_and_errors(
    script: str, serve: Any, pauses: list[float], clock: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    clock["end"] = time.monotonic() + 60

    def result(client: Any) -> Any:
        try:
            return client.get_item(**GET[1])
        except ServiceError as failure:
            return outcome_of(failure), failure.transient

    sdk = result(tap_stack.SdkService(sdk_client(serve(SCRIPTS[script])[0])))
    own = result(own_client(serve(SCRIPTS[script])[0], monkeypatch))
    if script in SAFER:
        assert (sdk, own[0]) == (SAFER[script], "no answer")
    else:
        assert sdk == own


def test_the_sdk_in_its_place_ends_with_the_time_of_the_invocation(
    serve: Any, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The SDK's thread is left behind: its other attempts would pause in the tests that follow.
    monkeypatch.setattr(tap_stack, "ATTEMPTS", 1)
    url, script = serve(["hang"])
    clock["end"] = time.monotonic() + PATIENCE / 3
    with pytest.raises(ServiceError, match=r"TimeoutError.*s that were left") as caught:
        tap_stack.SdkService(sdk_client(url)).get_item(**GET[1])
    assert caught.value.transient and len(script.requests) <= 1


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
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, script = serve([respond(200, ITEM, x_then_close="1")])
    service = own_client(url, monkeypatch)
    for _ in range(3):
        assert service.get_item() == ITEM
        assert service.metadata["RetryAttempts"] == 0
        threading.Event().wait(0.5)  # the end of the server's side arrives, also on a busy machine
    assert (len(script.requests), script.connections) == (3, 3)


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
    expected = SESSION.client(name, region_name=region).meta.endpoint_url
    assert "://".join(tap_stack.endpoint(name)) == expected


def test_the_signature_of_the_form_is_of_its_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET_NAME", "files-bucket")
    s3 = SESSION.client("s3", config=Config(signature_version="s3v4"))
    fields = s3.generate_presigned_post(Bucket="b", Key="k")["fields"]
    scope = fields["x-amz-credential"].partition("/")[2]
    assert tap_stack.sign(fields["policy"], "secret", scope) == fields["x-amz-signature"]


# HTTP/1.1

ANSWER = json.dumps(ITEM).encode()
LENGTH = f"content-length: {len(ANSWER)}\r\n".encode()
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
#: Responses, in the pieces in which they arrive -> how many connections two calls need.
RESPONSES: dict[str, tuple[list[bytes | None], int]] = {
    "at once": ([OK + LENGTH + b"\r\n" + ANSWER], 1),
    "without a reason": ([b"HTTP/1.1 200\r\n" + LENGTH + b"\r\n" + ANSWER], 1),
    "byte by byte": ([bytes([each]) for each in OK + LENGTH + b"\r\n" + ANSWER], 1),
    "chunks": ([CHUNKED + b"5\r\n" + ANSWER[:5] + b"\r\n", b"%x ;ext=1\r\n" % len(ANSWER[5:])
               + ANSWER[5:] + b"\r", b"\n0\r\n", b"x-trailer: 1\r\n\r\n"], 1),
    "chunks and a length": ([OK + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(ANSWER)
                           + ANSWER + b"\r\n0\r\n\r\n"], 2),
    "until the end": ([OK + b"\r\n" + ANSWER[:9], ANSWER[9:], None], 2),
    "the last of this connection": ([OK + LENGTH + b"Connection: Close\r\n\r\n" + ANSWER], 2),
    "of HTTP/1.0": ([b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\n" + ANSWER], 2),
    "after an interim response": ([b"HTTP/1.1 102 Processing\r\nx: y\r\n\r\n", OK + LENGTH
                                  + b"\r\n" + ANSWER], 1),
    "with more than was announced": ([OK + LENGTH + b"\r\n" + ANSWER + OK], 2),
}  # fmt: skip


@pytest.mark.parametrize("response", RESPONSES)
def test_a_response_is_read_as_it_is_framed(
    response: str, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", 30)
    pieces, connections = RESPONSES[response]
    url, script = serve([pieces])
    service = own_client(url, monkeypatch)
    assert [service.get_item(), service.get_item()] == [ITEM, ITEM]
    assert (len(script.requests), script.connections) == (2, connections)


MALFORMED: dict[str, list[bytes | None]] = {
    "no HTTP": [b"SSH-2.0-OpenSSH\r\n\r\n"],
    "HTTP/2": [b"HTTP/2 200\r\n\r\n"],
    "a header without a colon": [OK + b"nothing\r\n\r\n"],
    "a folded header": [OK + b"x: a\r\n b: c\r\n\r\n"],
    "a blank before the colon": [OK + b"content-length : 0\r\n\r\n"],
    "two lengths": [OK + LENGTH + b"content-length: 1\r\n\r\n" + ANSWER],
    "a negative length": [OK + b"content-length: -1\r\n\r\n"],
    "a length of many digits": [OK + b"content-length: " + b"9" * 5_000 + b"\r\n\r\n"],
    "an unknown coding": [OK + b"transfer-encoding: gzip, chunked\r\n\r\n"],
    "a chunk without a size": [CHUNKED + b"x\r\n"],
    "a chunk that is longer than its size": [CHUNKED + b"1\r\nab\r\n0\r\n\r\n"],
    "a chunk that ends too early": [CHUNKED + b"5\r\nab", None],
    "an endless header": [OK + b"x: " + b"y" * 200_000],
    "half a head": [OK + b"content-le", None],
    "a checksum that is no number": [OK + LENGTH + b"x-amz-crc32: x\r\n\r\n" + ANSWER],
}


@pytest.mark.parametrize("response", MALFORMED)
def test_a_malformed_response_is_a_broken_connection(
    response: str, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", 30)
    monkeypatch.setattr(tap_stack, "ATTEMPTS", 1)
    url, script = serve([MALFORMED[response], GOOD])
    service = own_client(url, monkeypatch)
    with pytest.raises(ServiceError, match=r"malformed|too early|checksum") as caught:
        service.get_item()
    assert caught.value.cost == tap_stack.RETRY_COST
    assert service.get_item() == ITEM
    assert (len(script.requests), script.connections) == (2, 2 - ("checksum" in response))


def test_content_that_nests_too_deep_is_an_error(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = serve([respond(200, b"[" * 100_000)])
    with pytest.raises(ServiceError, match="it is no JSON object"):
        own_client(url, monkeypatch).get_item()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_an_address_of_ipv6_stands_in_brackets(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, script = serve([GOOD], family=socket.AF_INET6)
    assert own_client(url, monkeypatch).get_item() == ITEM
    assert f"http://{script.requests[0][0]['host']}" == url


@pytest.mark.parametrize("url", ["localhost:4566", "http://a/b", "ftp://a", "http://a:b"])
def test_an_endpoint_that_is_none_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"AWS_ENDPOINT_URL.*{url}.*expected one such as"):
        own_client(url, monkeypatch)


# Time


STANDING_STILL = {"silence": ["hang"], "drops": ["drip"], "failures": [error("x", status=500)]}


@pytest.mark.parametrize("fault", STANDING_STILL)
def test_a_call_ends_with_the_time_of_its_invocation(
    fault: str, serve: Any, clock: dict[str, float], pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", 3_600)
    monkeypatch.setattr(tap_stack, "jitter", lambda: 0.9)
    url, script = serve(STANDING_STILL[fault])
    service = own_client(url, monkeypatch)
    clock["end"] = time.monotonic() + 0.8
    with pytest.raises(ServiceError) as caught:
        within(HANGS, service.get_item)
    # One attempt: another could not begin in time.
    assert caught.value.transient and len(script.requests) == 1 and pauses == []
    clock["end"] = time.monotonic()
    with pytest.raises(ServiceError, match="TimeoutError"):
        service.get_item()
    assert len(script.requests) == 1


def test_a_response_that_drips_has_one_deadline(
    serve: Any, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, script = serve(["drip", GOOD])
    assert within(HANGS, own_client(url, monkeypatch).get_item) == ITEM
    assert (len(script.requests), script.connections, len(pauses)) == (2, 2, 1)


def test_a_request_that_is_not_taken_has_a_deadline(
    serve: Any, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, reads nothing
        service = own_client(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch)
        with pytest.raises(ServiceError, match="TimeoutError"):
            service.put_item(Item="x" * 20_000_000)
    assert len(pauses) == tap_stack.ATTEMPTS - 1


def test_a_resolver_that_stands_still_has_a_deadline(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def getaddrinfo(*_: Any) -> Any:
        released.wait()

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(tap_stack, "CONNECT_TIMEOUT_SECONDS", 0.05)
    with pytest.raises(ServiceError, match="TimeoutError: getaddrinfo takes longer"):
        within(HANGS, own_client("http://dynamodb.test", monkeypatch).get_item)
    released.set()


def test_the_longest_call_is_the_documented_one() -> None:
    attempt = CONNECT_TIMEOUT_SECONDS + READ_TIMEOUT_SECONDS
    pauses = sum(2**retry for retry in range(tap_stack.ATTEMPTS - 1))
    longest = tap_stack.ATTEMPTS * attempt + pauses
    assert f"A call takes {longest} s at most" in str(Service.__doc__)
    default = tap_stack.TapStackArgs(environment_suffix="dev").timeout_seconds
    architecture = (
        Path(tap_stack.__file__).with_name("docs").joinpath("architecture.md").read_text()
    )
    assert f"at most {longest} s: {tap_stack.ATTEMPTS} attempts" in architecture
    assert (
        f"`timeout_seconds` less {tap_stack.RESERVE_SECONDS} s, {default - tap_stack.RESERVE_SECONDS} s"
        in architecture
    )
    # The shortest function has time for an attempt.
    shortest = attempt + tap_stack.RESERVE_SECONDS
    tap_stack.TapStackArgs(environment_suffix="dev", timeout_seconds=shortest)
    with pytest.raises(tap_stack.SettingsError, match=f"timeout_seconds must be {shortest} to"):
        tap_stack.TapStackArgs(environment_suffix="dev", timeout_seconds=shortest - 1)


REQUESTS: list[tuple[str, str, Any]] = [
    ("POST", "/items", {}), ("GET", "/items/a", None), ("PUT", "/items/a", {}),
    ("PATCH", "/items/a", {}), ("DELETE", "/items/a", None), ("GET", "/items", None),
    ("GET", "/files", None), ("GET", f"/files/{'a' * 40}", None), ("GET", "/files/totals", None),
]  # fmt: skip
STILL = {
    "DynamoDB": REQUESTS,
    "SSM": [("GET", "/items?next={token}", None), ("GET", "/items?limit=1", None)],
    "DynamoDB SSM": [("GET", "/items?next={token}", None), ("PATCH", "/items/a", {})],
}
WAITING = [(still, *each) for still, requests in STILL.items() for each in requests]


@pytest.mark.parametrize(("still", "method", "path", "body"), WAITING)
def test_the_caller_is_answered_before_lambda_ends_the_function(
    still: str, method: str, path: str, body: Any, api: Api, serve: Any,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    api("POST", "/items", {})
    api("POST", "/items", {})
    token = api("GET", "/items?limit=1").json["next"]
    tap_stack._paging.update(keys=[], tried=float("-inf"))
    url, script = serve(["drip"])
    for name in still.lower().split():
        monkeypatch.setitem(tap_stack._clients, name, own_client(url, monkeypatch, name))
    monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", 3_600)
    capsys.readouterr()
    api.context.seconds = tap_stack.RESERVE_SECONDS + 0.4
    response = within(HANGS, api, method, path.format(token=token), body)
    assert len(script.requests) < 2
    assert_problem(response, 503, "try again")
    assert response.headers["retry-after"] == "1"
    line = json.loads(capsys.readouterr().out)
    assert (line["level"], line["status"]) == ("ERROR", 503)
    assert "TimeoutError" in line["error"]


def test_a_list_has_time_although_ssm_stands_still(
    api: Api, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        api("POST", "/items", {})
    token = api("GET", "/items?limit=1").json["next"]
    tap_stack._paging.update(read=time.monotonic() - tap_stack.PAGING_KEY_SECONDS, tried=0)
    url, script = serve(["drip"])
    monkeypatch.setitem(tap_stack._clients, "ssm", own_client(url, monkeypatch, "ssm"))
    monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", 3_600)
    api.context.seconds = tap_stack.RESERVE_SECONDS + 2
    left: list[float] = []
    api.table.before = lambda *_: left.append(tap_stack.seconds_left())
    assert within(HANGS, api, "GET", f"/items?next={token}").status == 200
    assert len(script.requests) == 1 and left[0] > 0


# TLS


class Authorities:
    """What the system trusts: an authority that looks like one of Amazon's, and another."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder
        long_name = "an authority whose serial number is like Amazon's"
        self.amazon = certificate(long_name, None, None, serial=0x066C9F << 128 | 1)
        self.other, self.unknown = certificate("o", None, None), certificate("u", None, None)
        trusted = [each.public_bytes(Encoding.PEM) for each, _ in (self.other, self.amazon)]
        (folder / "trusted.pem").write_bytes(b"".join(trusted))
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "trusted.pem"))
        monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", HANGS)
        tap_stack.tls_context.cache_clear()

    def server(self, issuer: tuple[Any, Any], name: str = "localhost") -> ssl.SSLContext:
        """The context of a server with a certificate of an authority."""
        made, key = certificate(name, *issuer)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / "server.pem").write_bytes(made.public_bytes(Encoding.PEM) + secret)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.pem")
        return context


@pytest.fixture
def authorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Authorities]:
    yield Authorities(tmp_path, monkeypatch)
    tap_stack.tls_context.cache_clear()


@pytest.mark.parametrize("issuer", ["amazon", "other"])
def test_amazons_authorities_come_first_and_then_the_systems(
    issuer: str, authorities: Authorities, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, script = serve([GOOD], authorities.server(getattr(authorities, issuer)))
    service = own_client(url.replace("127.0.0.1", "localhost"), monkeypatch)
    assert len(tap_stack.tls_context(False).get_ca_certs()) == 1
    assert [service.get_item(), service.get_item()] == [ITEM, ITEM]
    assert script.connections == 1
    assert service.connection.all_authorities == (issuer == "other")


@pytest.mark.parametrize(
    ("issuer", "name", "why"),
    [("unknown", "localhost", "unable to get local issuer"), ("amazon", "b", "Hostname mismatch"),
     ("other", "b", "Hostname mismatch")],
)  # fmt: skip
def test_who_cannot_prove_its_name_is_told_nothing(
    issuer: str, name: str, why: str, authorities: Authorities, serve: Any, pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    url, script = serve([GOOD], authorities.server(getattr(authorities, issuer), name))
    service = own_client(url.replace("127.0.0.1", "localhost"), monkeypatch)
    with pytest.raises(ServiceError, match=why):
        service.get_item()
    assert script.requests == []


def test_where_amazons_authorities_are_missing_all_are_trusted(
    authorities: Authorities, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = authorities.other[0].public_bytes(Encoding.PEM)
    (authorities.folder / "trusted.pem").write_bytes(other)
    url, _ = serve([GOOD], authorities.server(authorities.other))
    assert own_client(url.replace("127.0.0.1", "localhost"), monkeypatch).get_item() == ITEM


def test_amazons_authorities_are_found_in_a_bundle() -> None:
    found = tap_stack.AMAZON_ROOT.findall(Path(DEFAULT_CA_BUNDLE).read_text())
    names = [load_pem_x509_certificate(each.encode()).subject.rfc4514_string() for each in found]
    assert sorted(names) == [f"CN=Amazon Root CA {n},O=Amazon,C=US" for n in range(1, 5)]


def test_half_a_record_of_tls_has_a_deadline(
    authorities: Authorities, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, released = authorities.server(authorities.amazon), threading.Event()

    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls, reading = context.wrap_bio(received, sent, server_side=True), True
        while reading:
            try:
                reading = not tls.read(65_536)
            except ssl.SSLWantReadError:
                connection.sendall(sent.read())
                received.write(connection.recv(65_536))
        tls.write(OK + LENGTH + b"\r\n" + ANSWER)
        record = sent.read()
        connection.sendall(record[: len(record) // 2])
        released.wait()

    monkeypatch.setattr(tap_stack, "ATTEMPTS", 1)
    monkeypatch.setattr(tap_stack, "READ_TIMEOUT_SECONDS", PATIENCE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=[server], daemon=True)
        thread.start()
        service = own_client(f"https://localhost:{server.getsockname()[1]}", monkeypatch)
        with pytest.raises(ServiceError, match="TimeoutError"):
            within(HANGS, service.get_item)
    released.set()
