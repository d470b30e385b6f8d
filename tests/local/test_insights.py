"""The saved queries of an incident, run as they are saved on the logs of what has happened."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from taplocal.access import call, person_token, upload
from taplocal.session import Session
from tests.local.conftest import Call
from tests.local.small import code, eventually

API_LOG, FILES_LOG = "/aws/lambda/tap-stack-api-dev", "/aws/lambda/tap-stack-files-dev"
ACCESS_LOG = "/aws/vendedlogs/apis/tap-stack-api-dev"

Rows = list[dict[str, str]]
Ask = Callable[..., Rows]


@pytest.fixture
def ask(deployed: Session) -> Ask:
    """Runs a saved query; words to put into it are named."""
    saved = {
        each.inputs["name"].rpartition("/")[2]: each.inputs
        for each in deployed.state.resources.values()
        if each.type.endswith(":QueryDefinition")
    }
    logs = deployed.cloud.client("logs")

    def asked(name: str, **words: str) -> Rows:
        query = str(saved[name]["queryString"])
        for word, value in words.items():
            query = query.replace(f'"{word}"', f'"{value}"')
        now = int(time.time())
        groups = saved[name]["logGroupNames"]
        started = logs.start_query(
            logGroupNames=groups, queryString=query, startTime=now - 3600, endTime=now + 60
        )
        found = logs.get_query_results(queryId=started["queryId"])
        return [{x["field"]: x["value"] for x in row} for row in found["results"]]

    return asked


def test_one_request_leads_to_the_file_that_it_uploaded(
    deployed: Session, ask: Ask, fresh: str
) -> None:
    token = person_token(deployed, "ann@example.com")
    form, stored = upload(deployed, token, f"{fresh}.txt", b"x", "text/plain")
    assert stored.status == 204
    request, key = form.headers["apigw-requestid"], form.json()["fields"]["key"]

    def lines() -> Any:
        found = ask("one-request", ID=request)
        logs = {row["@log"].partition(":")[2] for row in found}
        return logs == {API_LOG, ACCESS_LOG, FILES_LOG} and found

    found = eventually(lines)
    assert {row["routeKey"] for row in found if "routeKey" in row} == {"POST /files"}
    assert {row["key"] for row in found if "key" in row} >= {key}
    assert any(key in row["@message"] for row in ask("one-file", KEY=key))


def test_callers_and_routes_are_counted(deployed: Session, ask: Ask, ann: Call, fresh: str) -> None:
    assert ann("POST", "/items", json.dumps({"id": fresh})).status == 201
    assert ann("GET", f"/items/{fresh}-gone").status == 404
    of = eventually(lambda: {x["status"]: x for x in ask("callers")}.keys() >= {"201", "404"})
    assert of
    (made,) = [x for x in ask("callers") if x["status"] == "201" and float(x["units"]) > 0][:1]
    assert made["caller"]
    assert float(made["slowest"]) > 0
    slow = {x["route"]: x for x in ask("slow-routes")}
    route = slow["POST /items"]
    assert 0 < float(route["p50"]) <= float(route["p99"]) <= float(route["most"])
    assert route["bin(5m)"].endswith(":00.000")


def test_what_the_api_refuses_before_a_function_is_counted(deployed: Session, ask: Ask) -> None:
    assert call(deployed, "GET", "/items", "no token").status == 401

    def refused() -> bool:
        return any(x["status"] == "401" and int(x["requests"]) for x in ask("refused"))

    eventually(refused)
    assert not [x for x in ask("refused") if x["status"] == "404"]


def test_failures_have_their_place_in_the_code(deployed: Session, ask: Ask, ann: Call) -> None:
    dynamodb, table = deployed.cloud.client("dynamodb"), deployed.outputs["table_name"]
    kms = deployed.cloud.client("kms")
    kms.disable_key(KeyId=deployed.outputs["key_arn"])
    try:
        response = ann("GET", "/items")
    finally:
        kms.enable_key(KeyId=deployed.outputs["key_arn"])
    eventually(lambda: not code(lambda: dynamodb.scan(TableName=table, Limit=1)))
    assert response.status >= 500
    request = response.headers["apigw-requestid"]
    row, *_ = eventually(lambda: [x for x in ask("failures") if x["request_id"] == request])
    assert row["route"] == "GET /items"
    assert int(row["status"]) == response.status
    assert row["error"]
    assert ":" in row["stack.0"]


def test_files_that_could_not_be_recorded_have_their_error(deployed: Session, ask: Ask) -> None:
    function = deployed.outputs["files_function_name"]
    event = {"Records": [{"eventName": "ObjectCreated:Put", "s3": {}}]}
    deployed.cloud.client("lambda").invoke(
        FunctionName=function, Qualifier="live", Payload=json.dumps(event).encode()
    )
    row, *_ = eventually(lambda: [x for x in ask("failed-files") if "KeyError" in x["error"]])
    assert row["request_id"]
    assert ":" in row["stack.0"]
