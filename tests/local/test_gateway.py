"""The gateway on the local cloud: it throttles by route, and writes its access log."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from taplocal import access
from taplocal.session import Session
from tests.local.conftest import Call
from tests.local.small import Small

FORMAT = {
    "id": "$context.requestId", "ip": "$context.identity.sourceIp", "at": "$context.requestTime",
    "method": "$context.httpMethod", "path": "$context.path", "route": "$context.routeKey",
    "status": "$context.status", "length": "$context.responseLength",
    "agent": "$context.identity.userAgent", "function": "$context.integration.status",
    "lambda": "$context.integrationStatus", "why": "$context.integrationErrorMessage",
    "took": "$context.integrationLatency", "error": "$context.error.message",
    "unknown": "$context.nothing.known", "owner": "$context.accountId",
}  # fmt: skip

SLOW = """
import time
def handler(event, context):
    time.sleep(1)
"""


def lines(small: Small, group: str) -> list[dict[str, Any]]:
    events = small.client("logs").filter_log_events(logGroupName=group)["events"]
    return [json.loads(each["message"]) for each in events]


def log_settings(small: Small) -> dict[str, str]:
    small.client("logs").create_log_group(logGroupName=small.name)
    small.later(small.client("logs").delete_log_group, logGroupName=small.name)
    arn = small.arn("logs", f"log-group:{small.name}")
    return {"DestinationArn": arn, "Format": json.dumps(FORMAT)}


def test_beyond_a_stages_burst_a_route_answers_429_and_no_function_sees_it(small: Small) -> None:
    function = small.function()
    settings = {"ThrottlingBurstLimit": 3, "ThrottlingRateLimit": 0.001}
    api = small.api(function, "GET /a", "GET /b", DefaultRouteSettings=settings)
    small.permit("apigateway.amazonaws.com", small.arn("execute-api", f"{api}/*"))
    answers = [small.get(api, "/a") for _ in range(5)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 429, 429]
    assert answers[-1][2] == {"message": "Too Many Requests"}
    assert small.get(api, "/b")[0] == 200  # a route has tokens of its own
    assert small.count("Invocations") == 4
    assert small.count("4xx", "AWS/ApiGateway", ApiId=api, Stage="$default") == 2
    own = {"GET /a": {"ThrottlingBurstLimit": 2, "ThrottlingRateLimit": 1000.0}}
    small.client("apigatewayv2").update_stage(ApiId=api, StageName="$default", RouteSettings=own)
    assert small.get(api, "/a")[0] == 200  # counts at once


def test_a_stage_without_limits_has_those_of_the_account(small: Small) -> None:
    api = small.api(small.function(), "GET /a", DefaultRouteSettings={})
    small.permit("apigateway.amazonaws.com", small.arn("execute-api", f"{api}/*"))
    assert {small.get(api, "/a")[0] for _ in range(20)} == {200}


def test_a_slow_function_is_given_up_and_the_log_says_so(small: Small) -> None:
    api = small.api(small.function(source=SLOW), "GET /a", AccessLogSettings=log_settings(small))
    small.permit("apigateway.amazonaws.com", small.arn("execute-api", f"{api}/*"))
    gateway = small.client("apigatewayv2")
    (integration,) = gateway.get_integrations(ApiId=api)["Items"]
    gateway.update_integration(
        ApiId=api, IntegrationId=integration["IntegrationId"], TimeoutInMillis=50
    )
    assert small.get(api, "/a")[::2] == (503, {"message": "Service Unavailable"})
    (line,) = lines(small, small.name)
    assert (line["status"], line["why"]) == ("503", "Endpoint request timed out")


def test_detailed_metrics_are_of_the_routes_that_ask(small: Small) -> None:
    own = {"GET /a": {"DetailedMetricsEnabled": True}}
    api = small.api(small.function(), "GET /a", "GET /b", RouteSettings=own)
    small.permit("apigateway.amazonaws.com", small.arn("execute-api", f"{api}/*"))
    for path in ("/a", "/b"):
        assert small.get(api, path)[0] == 200
    of_stage = {"ApiId": api, "Stage": "$default"}
    counted = [
        small.count("Count", "AWS/ApiGateway", **of_stage, **of)
        for of in ({}, {"Method": "GET", "Resource": "/a"}, {"Method": "GET", "Resource": "/b"})
    ]
    assert counted == [2, 1, 0]


def test_each_request_has_a_line_in_the_access_log(small: Small) -> None:
    limits = {"GET /never": {"ThrottlingBurstLimit": 0, "ThrottlingRateLimit": 0.0}}
    api = small.api(
        small.function(), "GET /a", "GET /fail", "GET /never",
        AccessLogSettings=log_settings(small), RouteSettings=limits,
    )  # fmt: skip
    small.permit("apigateway.amazonaws.com", small.arn("execute-api", f"{api}/*"))
    status, headers, body = small.get(api, "/a")
    assert (status, body) == (200, headers["apigw-requestid"])  # the function has the same id
    paths = ("/fail", "/never", "/no%22where%0A")
    failed, never, nowhere = (small.get(api, path) for path in paths)
    assert failed[::2] == (500, {"message": "Internal Server Error"})
    assert nowhere[::2] == (404, {"message": "Not Found"})
    first, second, third, fourth = lines(small, small.name)
    at = datetime.strptime(first.pop("at"), "%d/%b/%Y:%H:%M:%S %z")
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert int(first.pop("took")) >= 0
    assert first.pop("agent").startswith("Python-urllib/")
    assert first == {
        "id": headers["apigw-requestid"], "ip": "127.0.0.1", "method": "GET", "path": "/a",
        "route": "GET /a", "status": "200", "length": str(len(json.dumps(body))),
        "function": "200", "lambda": "200", "why": "-", "error": "-", "unknown": "-",
        "owner": small.deployed.cloud.account,
    }  # fmt: skip
    told = "The Lambda function returned the following error: as asked."
    assert (second["status"], second["why"], second["function"]) == ("500", told, "-")
    assert (third["status"], third["error"]) == ("429", "Too Many Requests")
    assert (third["id"], third["took"]) == (never[1]["apigw-requestid"], "-")
    assert (fourth["status"], fourth["route"]) == ("404", "-")
    assert fourth["path"] == "/no%22where%0A"  # no line of JSON is broken by a path


def test_the_access_log_of_the_stack_says_who_called_and_why_not(
    deployed: Session, ann: Call
) -> None:
    client, group = deployed.cloud.client("logs"), "/aws/vendedlogs/apis/tap-stack-api-dev"
    wanted = {
        ann("GET", "/items").headers["apigw-requestid"]: ("200", "-"),
        access.call(deployed, "GET", "/items", "no.to.ken", None).headers["apigw-requestid"]: (
            "401", "Unauthorized",
        ),
    }  # fmt: skip
    events = client.filter_log_events(logGroupName=group)["events"]
    found = {each["requestId"]: each for each in (json.loads(x["message"]) for x in events)}
    for request, (status, error) in wanted.items():
        line = found[request]
        assert (line["status"], line["authorizerError"]) == (status, error)
        assert (line["caller"] == "-") is (status == "401")


def test_the_stage_of_the_stack_has_the_limits_of_the_settings(deployed: Session) -> None:
    api = deployed.outputs["api_url"].rpartition("/")[2]
    stage = deployed.cloud.client("apigatewayv2").get_stage(ApiId=api, StageName="$default")
    limits = stage["DefaultRouteSettings"]
    assert (limits["ThrottlingRateLimit"], limits["ThrottlingBurstLimit"]) == (50, 100)
    assert stage["RouteSettings"]["GET /health"]["ThrottlingBurstLimit"] == 10


def test_preflights_of_many_pages_at_once_are_answered(deployed: Session) -> None:
    url = f"{deployed.outputs['api_url']}/items"
    asked = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    with ThreadPoolExecutor(16) as pool:
        sent = [pool.submit(access.request, "OPTIONS", url, headers=asked) for _ in range(60)]
    assert {each.result().status for each in sent} <= {200, 204}


def test_the_line_of_a_slow_request_is_not_sorted_into_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MiniStack would, for a time before that of the last line, and that takes O(n)."""
    from ministack.services import cloudwatch_logs

    from taplocal.server import gateway

    group: dict[str, Any] = {"streams": {}}
    monkeypatch.setattr(cloudwatch_logs, "_log_groups", {"g": group})
    settings = {"destinationArn": "arn:aws:logs:r:a:log-group:g:*", "format": "$context.path"}
    lists = []
    for path, began in (("/quick", 100.0), ("/slow", 0.0)):
        call = gateway.Call("GET", path, {}, None, started=began)
        gateway.write(settings, call, {"apiId": "x", "stage": "$default", "status": 200}, b"")
        lists.append(group["streams"]["x"]["events"])
    assert lists[0] is lists[1]
    assert [each["message"] for each in lists[1]] == ["/quick", "/slow"]
