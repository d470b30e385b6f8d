"""The API's handler: routes, scopes, bodies, problems, the log, also when DynamoDB fails."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tap_stack
from tests.fakes import service_error
from tests.unit.conftest import Api, assert_problem

# Routes, scopes


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("PUT", "/items", 405, "POST, GET"),
        ("POST", "/items/a", 405, "GET, PUT, PATCH, DELETE"),
        ("OPTIONS", "/items", 204, "POST, GET"),
        ("OPTIONS", "/items/a", 204, "GET, PUT, PATCH, DELETE"),
        ("GET", "/", 404, None),
        ("GET", "/items/a/b", 404, None),
        ("GET", "/items/", 404, None),
        ("OPTIONS", "/nothing", 404, None),
    ],
)
def test_what_no_route_takes(
    api: Api, method: str, path: str, status: int, allow: str | None
) -> None:
    response = api.raw(method, path)
    assert (response.status, response.headers.get("allow")) == (status, allow)


def test_every_route_wants_its_scope(api: Api) -> None:
    for route, (_, scope, _) in tap_stack.all_routes().items():
        method, path = route.split()
        claims = {
            "sub": "ann",
            "scope": " ".join(
                {"openid", "items/read", "items/write", "files/read", "files/write"} - {scope}
            ),
        }
        context = {
            "requestId": "request-1",
            "http": {"method": method},
            "authorizer": {"jwt": {"claims": claims}},
        }
        response = api.raw(method, path.format(id="a"), requestContext=context)
        assert_problem(response, 403, scope)
        assert f'scope="{scope}"' in response.headers["www-authenticate"]
        context["authorizer"] = {}
        assert_problem(api.raw(method, path.format(id="a"), requestContext=context), 401)


def test_a_machine_owns_what_its_client_makes(api: Api) -> None:
    claims = {"client_id": "robot", "scope": "items/write"}
    context = {
        "requestId": "r",
        "http": {"method": "POST"},
        "authorizer": {"jwt": {"claims": claims}},
    }
    headers = {"content-type": "application/json"}
    assert (
        api.raw("POST", "/items", text='{"id":"a"}', headers=headers, requestContext=context).status
        == 201
    )
    assert api.table.items["a"]["owner"] == {"S": "robot"}


# Bodies


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/xml", "application/merge-patch+json"]
)
def test_another_content_type_is_415_and_named(api: Api, content_type: str) -> None:
    response = api.raw(
        "POST", "/items", text="{}", headers={"content-type": content_type} if content_type else {}
    )
    assert_problem(response, 415, "application/json")
    assert response.headers["accept"] == "application/json"


def test_parameters_of_the_content_type_are_ignored(api: Api) -> None:
    assert api("POST", "/items", {}, content_type="Application/JSON; charset=utf-8").status == 201


def test_a_base64_body_is_read(api: Api) -> None:
    headers = {"content-type": "application/json"}
    good = api.raw("POST", "/items", text="eyJhIjoxfQ==", headers=headers, isBase64Encoded=True)
    assert good.json["a"] == 1
    bad = api.raw("POST", "/items", text="/w==", headers=headers, isBase64Encoded=True)
    assert_problem(bad, 400, "not UTF-8")


def test_a_body_above_the_limit_is_413_before_it_is_parsed(api: Api) -> None:
    assert_problem(api("POST", "/items", "x" * (tap_stack.BODY_LIMIT + 1)), 413)
    assert not api.table.calls


# Failures

CALLS: list[tuple[str, str, Any]] = [
    ("POST", "/items", {}),
    ("GET", "/items", None),
    ("GET", "/items/a", None),
    ("PUT", "/items/a", {}),
    ("PATCH", "/items/a", {}),
    ("DELETE", "/items/a", None),
]


@pytest.mark.parametrize(
    "error",
    [
        service_error(
            "ProvisionedThroughputExceededException", "GetItem", "arn:aws:dynamodb:secret"
        ),
        service_error("ThrottlingException", "GetItem"),
        service_error("InternalServerError", "GetItem"),
        tap_stack.connection_error(
            "GetItem", "TimeoutError: https://secret", tap_stack.TIMEOUT_COST
        ),
    ],
    ids=str,
)
def test_when_dynamodb_fails_the_caller_may_try_again_and_learns_nothing(
    api: Api, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(operation: str, arguments: Any) -> None:
        raise error

    api.table.before = fail
    for method, path, body in CALLS:
        response = api(method, path, body)
        assert_problem(response, 503)
        assert response.headers["retry-after"] == "1"
        assert "secret" not in response.text
        line = json.loads(capsys.readouterr().out)
        assert (line["level"], line["status"]) == ("ERROR", 503)
        assert type(error).__name__ in line["error"]


@pytest.mark.parametrize(
    "code", ["AccessDeniedException", "ResourceNotFoundException", "UnrecognizedClientException"]
)
def test_what_another_attempt_would_not_mend_is_500(
    api: Api, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(operation: str, arguments: Any) -> None:
        raise service_error(code, "GetItem", "arn:aws:kms:secret is disabled")

    api.table.before = fail
    for method, path, body in CALLS:
        response = api(method, path, body)
        assert_problem(response, 500)
        assert "secret" not in response.text
        assert code in json.loads(capsys.readouterr().out)["error"]


def test_our_own_mistake_is_500_and_logged(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tap_stack, "item_json", lambda item: 1 / 0)
    assert_problem(api("POST", "/items", {}), 500)
    assert json.loads(capsys.readouterr().out)["error"] == "ZeroDivisionError: division by zero"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]),
    path=st.sampled_from(["/items", "/items/a", "/"]) | st.text(max_size=20).map("/items/".__add__),
    query=st.dictionaries(
        st.sampled_from(["category", "order", "limit", "next", "x"]), st.text(max_size=30)
    ),
    text=st.none()
    | st.text(max_size=50)
    | st.sampled_from(["{}", '{"id":"a"}', '{"a":{"b":[1e5,null]}}', "[[[["]),
    encoded=st.booleans(),
    headers=st.dictionaries(
        st.sampled_from(["content-type", "if-match", "if-none-match", "idempotency-key"]),
        st.text(max_size=30) | st.just("application/json"),
    ),
)
def test_no_input_makes_a_500(
    api: Api, method: str, path: str, query: Any, text: str | None, encoded: bool, headers: Any
) -> None:
    more = {"isBase64Encoded": encoded, "queryStringParameters": query}
    assert api.raw(method, path, "", text, headers, **more).status < 500


# The log


def test_each_request_logs_one_line_with_its_business_metric(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api("POST", "/items", {"id": "a"})
    line = json.loads(capsys.readouterr().out)
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive == {
        "Namespace": "tap-stack",
        "Dimensions": [["Environment"]],
        "Metrics": [{"Name": "ItemsCreated", "Unit": "Count"}],
    }
    assert (line["ItemsCreated"], line["Environment"]) == (1, "dev")
    for key, value in {
        "route": "POST /items",
        "status": 201,
        "caller": "ann",
        "request_id": "request-1",
    }.items():
        assert line[key] == value
    assert line["consumed_capacity"] == 1
    assert line["latency_ms"] >= 0


@pytest.mark.parametrize(
    ("call", "metric"),
    [
        (("GET", "/items/x"), "RequestsRejected"),
        (("GET", "/items"), "ItemsListed"),
        (("OPTIONS", "/items"), "RequestsOther"),
    ],
)
def test_every_outcome_counts_in_one_metric(
    api: Api, call: tuple[str, str], metric: str, capsys: Any
) -> None:
    api(*call)
    assert json.loads(capsys.readouterr().out)[metric] == 1
