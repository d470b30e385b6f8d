"""The functions with fakes in place of AWS; nothing here touches a network."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import pytest

import tap_stack
from tests.contract import check_response
from tests.fakes import FakeContext, FakeDynamoDB, FakeS3, FakeSSM

KEY = "11" * 32
NEVER = float("-inf")
ENVIRONMENT = {
    "TABLE_NAME": "items",
    "PAGING_KEY": "paging",
    "KEY_ARN": "arn:aws:kms:eu-west-1:111122223333:key/k",
    "IDEMPOTENCY_SECONDS": "86400",
    "ENVIRONMENT": "dev",
    "METRICS_NAMESPACE": "tap-stack",
    "FILES_TABLE_NAME": "files",
    "BUCKET_NAME": "files-bucket",
    "UPLOAD_BYTES": "1000000",
    "UPLOAD_TYPES": "image/* application/pdf",
    "AWS_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "AKIA",
    "AWS_SECRET_ACCESS_KEY": "secret",
}


@dataclass
class Response:
    """What the handler responded."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Api:
    """Calls the handler as the gateway does."""

    def __init__(self, table: FakeDynamoDB, ssm: FakeSSM):
        self.table, self.ssm, self.context = table, ssm, FakeContext()

    def __call__(
        self, method: str, path: str, body: Any = None, caller: str = "ann", **headers: str
    ) -> Response:
        path, _, query = path.partition("?")
        text = body if isinstance(body, str | None) else json.dumps(body)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if text is not None:
            names.setdefault("content-type", "application/json")
        return self.raw(method, path, query, text, names, caller)

    def raw(
        self,
        method: str,
        path: str,
        query: str = "",
        text: str | None = None,
        headers: dict[str, str] | None = None,
        caller: str = "ann",
        **more: Any,
    ) -> Response:
        event = self.event(method, path, query, text, headers, caller, **more)
        response = tap_stack.api(event, self.context)
        if event["routeKey"] in tap_stack.all_routes():
            check_response(
                event["routeKey"], response["statusCode"], response["headers"], response["body"]
            )
        return Response(response["statusCode"], response["headers"], response["body"])

    def event(
        self,
        method: str,
        path: str,
        query: str = "",
        text: str | None = None,
        headers: dict[str, str] | None = None,
        caller: str = "ann",
        **more: Any,
    ) -> dict[str, Any]:
        """What the gateway invokes the function with."""
        route, parameters = f"{method} {path}", None
        if path.count("/") >= 2 and route not in tap_stack.all_routes():
            _, kind, item_id, *rest = path.split("/")
            route, parameters = "/".join([f"{method} ", kind, "{id}", *rest]), {"id": item_id}
        scope = "openid items/read items/write files/read files/write files/report"
        claims = {"sub": caller, "scope": scope}
        return {
            "routeKey": route if route in tap_stack.all_routes() else "$default",
            "rawPath": path,
            "headers": headers or {},
            "queryStringParameters": dict(parse_qsl(query, keep_blank_values=True)) or None,
            "pathParameters": parameters,
            "body": text,
            "isBase64Encoded": False,
            "requestContext": {
                "requestId": "request-1",
                "http": {"method": method},
                "authorizer": {"jwt": {"claims": claims}},
            },
            **more,
        }


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The time of an invocation, which ends with the test."""
    clock = {"end": float("inf")}
    monkeypatch.setattr(tap_stack, "_clock", clock)
    return clock


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """The API on an empty table."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    fakes = {"dynamodb": FakeDynamoDB(), "ssm": FakeSSM(paging=KEY)}
    fakes |= dict.fromkeys(("s3", "s3 once"), FakeS3())
    monkeypatch.setattr(tap_stack, "_clients", fakes)
    monkeypatch.setattr(
        tap_stack, "_paging", dict(tap_stack._paging, keys=[], read=NEVER, tried=NEVER)
    )
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield Api(fakes["dynamodb"], fakes["ssm"])  # type: ignore[arg-type]


def assert_problem(response: Response, status: int, detail: str = "", kind: str = "") -> None:
    """Fails if a response is not this problem, of a type of its status."""
    assert response.status == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json == {
        **response.json,
        "status": status,
        "request_id": "request-1",
    }
    name = response.json["type"].removeprefix("/openapi.yaml#")
    assert tap_stack.PROBLEM_TYPES[name] == (status, response.json["title"])
    assert kind in ("", name)
    assert detail in response.json["detail"]
