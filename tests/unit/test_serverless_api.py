"""The API's handler: routes, scopes, bodies, problems, the log, also when DynamoDB fails."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tap_stack
from tests.environments import ROOT
from tests.fakes import service_error
from tests.unit.conftest import Api, assert_problem

# Routes, scopes


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("PUT", "/items", 405, "POST, GET, HEAD"),
        ("POST", "/items/a", 405, "GET, PUT, PATCH, DELETE, HEAD"),
        ("OPTIONS", "/items", 204, "POST, GET, HEAD"),
        ("OPTIONS", "/items/a", 204, "GET, PUT, PATCH, DELETE, HEAD"),
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


def test_options_names_the_patch_formats(api: Api) -> None:
    formats = "application/merge-patch+json, application/json"
    assert api("OPTIONS", "/items/a").headers["accept-patch"] == formats
    assert "accept-patch" not in api("OPTIONS", "/items").headers


OPEN_ROUTES = {"GET /health", "HEAD /health", "GET /openapi.yaml", "HEAD /openapi.yaml"}


def test_every_route_wants_its_scope(api: Api) -> None:
    routes = tap_stack.all_routes()
    assert {key for key, route in routes.items() if not route.scope} == OPEN_ROUTES
    for route in routes.keys() - OPEN_ROUTES:
        method, path, scope = *route.split(), routes[route].scope
        known = {"openid", *tap_stack.scopes_of(tap_stack.SYSTEMS)}
        claims = {"sub": "ann", "scope": " ".join(known - {scope})}
        context = {
            "requestId": "request-1",
            "http": {"method": method},
            "authorizer": {"jwt": {"claims": claims}},
        }
        response = api.raw(method, path.format(id="a"), requestContext=context)
        assert_problem(response, 403, scope)
        assert f'scope="{scope}"' in response.headers["www-authenticate"]
        context["authorizer"] = {}
        response = api.raw(method, path.format(id="a"), requestContext=context)
        assert_problem(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"


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
    assert api.table.items["robot a"]["owner"] == {"S": "robot"}


# Without a token


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_reads_nothing(api: Api, method: str) -> None:
    response = api.raw(method, "/health", requestContext=nobody(method))
    assert (response.status, response.json) == (200, {"status": "ok"})
    assert response.headers["cache-control"] == "no-store"
    assert (api.table.calls, api.ssm.calls) == ([], 0)


def test_the_contract_is_served_as_it_stands(api: Api) -> None:
    response = api.raw("GET", "/openapi.yaml", requestContext=nobody("GET"))
    assert (response.status, response.text) == (200, (ROOT / "openapi.yaml").read_text())
    assert response.headers["content-type"] == "application/yaml"
    assert response.headers["cache-control"] == "public, max-age=300"
    tag = response.headers["etag"]
    again = api("GET", "/openapi.yaml", if_none_match=f'"x", W/{tag}')
    assert (again.status, again.text, again.headers["etag"]) == (304, "", tag)
    assert_problem(api("GET", "/openapi.yaml", if_match='"x"'), 412)


def nobody(method: str) -> dict[str, Any]:
    """The context of a request without a token."""
    return {"requestId": "request-1", "http": {"method": method}}


# HEAD


@pytest.mark.parametrize("path", ["/items", "/items/a", "/items/b", "/files", "/files/totals"])
@pytest.mark.parametrize("header", [{}, {"if_none_match": "*"}, {"if_match": '"x"'}])
def test_head_responds_as_get_does(api: Api, path: str, header: dict[str, str]) -> None:
    api("POST", "/items", {"id": "a"})
    get, head = (api(method, path, **header) for method in ("GET", "HEAD"))
    assert head == get, "the gateway drops the body and knows its length"


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


@pytest.mark.parametrize(
    "kind", ["{}", "{};charset=utf-8", "{};\tcharset=utf-8", '{} ; v=1; Charset="UTF-8"', "{};"]
)
def test_a_body_is_utf_8(api: Api, kind: str) -> None:
    assert api("POST", "/items", {}, content_type=kind.format("Application/JSON")).status == 201


@pytest.mark.parametrize(
    "charset", ["latin1", "\tlatin1", '"utf-16"', "us-ascii", "", "utf-8; charset=utf-7"]
)
def test_another_charset_is_415(api: Api, charset: str) -> None:
    kind = f"application/json;\tcharset={charset}"
    response = api("POST", "/items", {}, content_type=kind)
    assert_problem(response, 415, "UTF-8")
    assert response.headers["accept"] == "application/json"


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", ""])
def test_a_content_coding_is_415(api: Api, coding: str) -> None:
    response = api("POST", "/files", {}, content_encoding=coding)
    assert_problem(response, 415, "content coding")
    assert response.headers["accept-encoding"] == "identity"
    assert api("POST", "/items", {}, content_encoding="Identity").status == 201


def test_an_unknown_patch_format_is_answered_with_the_known_ones(api: Api) -> None:
    response = api("PATCH", "/items/a", {}, content_type="application/json-patch+json")
    assert_problem(response, 415, "application/merge-patch+json or application/json")
    assert response.headers["accept-patch"] == "application/merge-patch+json, application/json"
    assert response.headers["accept"] == response.headers["accept-patch"]


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
    line = json.loads(capsys.readouterr().out)
    assert line["error"] == "ZeroDivisionError: division by zero"
    assert line["stack"][0].startswith("api:") and "test_serverless_api.py:" in line["stack"][-1]


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
    assert "trace_id" not in line  # outside of Lambda
    api("PATCH", "/items/a", {"name": "b"})  # a read and a write
    assert json.loads(capsys.readouterr().out)["consumed_capacity"] == 2


def test_a_log_line_has_the_id_of_its_trace(
    api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    header = "Root=1-67891233-abcdef012345678912345678;Parent=53995c3f42cd8ad8;Sampled=0"
    monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    api("GET", "/health")
    line = json.loads(capsys.readouterr().out)
    assert line["trace_id"] == "1-67891233-abcdef012345678912345678"


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


def test_a_name_of_a_route_or_an_index_is_of_small_letters_digits_and_single_dashes() -> None:
    assert tap_stack._slug("GET /items/{id}") == "get-items-id"
    assert tap_stack._slug("by_Owner2") == "by-owner2"
