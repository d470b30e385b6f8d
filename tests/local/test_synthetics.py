"""The canary walks through the deployed API: green, red when something is broken, and it cleans up."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taplocal import access, keeper, session
from taplocal.session import Session
from tests.local.conftest import ROOT
from tests.local.test_file_pipeline import eventually

NAME = "tap-stack-synthetics-dev"
SYNTHETICS = {"systems": '["api"]', "synthetics": "true"}
DENIED = {"Effect": "Deny", "Action": "dynamodb:PutItem", "Resource": "*"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """An API with its canary, which walks when a test says so."""
    folder: Any = {"folder": tmp_path_factory.mktemp("synthetics"), "report": lambda _: None}
    try:
        made, _ = session.up(ROOT, "dev", config=SYNTHETICS, say=lambda _: None, **folder)
        scheduler = made.cloud.client("scheduler")
        found = scheduler.get_schedule(Name=NAME)
        kept = ("Name", "ScheduleExpression", "FlexibleTimeWindow", "Target", "KmsKeyArn")
        scheduler.update_schedule(**{key: found[key] for key in kept}, State="DISABLED")
        eventually(lambda: not queued(made.folder))  # it may have been due before
        yield made
    finally:
        session.down(ROOT, None, **folder)


def queued(folder: Path) -> list[Any]:
    """The asynchronous invocations that have not ended, once all changes are saved."""
    keeper.wait(folder, lambda: True)
    found: list[Any] = json.loads(
        (folder / keeper.STATE / keeper.CURRENT / "events.json").read_text()
    )
    return found


class Walked:
    """A walk that has just taken place: its log, and whether it passed."""

    def __init__(self, stack: Session):
        began = int(time.time() * 1000) - 1
        answer = stack.cloud.client("lambda").invoke(
            FunctionName=NAME, Qualifier="live", Payload=b"{}"
        )
        assert "FunctionError" not in answer, answer["Payload"].read()

        def read() -> list[dict[str, Any]]:
            logs = stack.cloud.client("logs")
            found = logs.filter_log_events(logGroupName=f"/aws/lambda/{NAME}", startTime=began)
            texts = [x["message"] for x in found["events"] if x["message"].startswith("{")]
            lines = [json.loads(text) for text in texts]
            return lines if any("_aws" in each for each in lines) else []

        *self.errors, summary = eventually(read)
        assert summary["Environment"] == "dev"
        self.passed = summary["WalksPassed"]
        self.messages = [each["message"] for each in self.errors]


def machine(stack: Session) -> dict[str, Any]:
    """The canary's own app client."""
    cognito, pool = stack.cloud.client("cognito-idp"), {"UserPoolId": stack.outputs["user_pool_id"]}
    clients = cognito.list_user_pool_clients(**pool, MaxResults=60)["UserPoolClients"]
    (found,) = (each["ClientId"] for each in clients if each["ClientName"] == NAME)
    described = cognito.describe_user_pool_client(**pool, ClientId=found)["UserPoolClient"]
    return dict(described)


def items(stack: Session) -> list[str]:
    """The ids of the items that are there; what remembers a request expires."""
    found = stack.cloud.client("dynamodb").scan(TableName=stack.outputs["table_name"])["Items"]
    return [x["id"]["S"] for x in found if not x["id"]["S"].startswith("idempotency#")]


def test_a_walk_passes_and_leaves_nothing(stack: Session) -> None:
    walked = Walked(stack)
    assert (walked.passed, walked.errors, items(stack)) == (1, [], [])
    assert Walked(stack).passed == 1


def test_what_a_killed_walk_left_is_deleted_by_the_next(stack: Session) -> None:
    client = machine(stack)
    basic = base64.b64encode(f"{client['ClientId']}:{client['ClientSecret']}".encode()).decode()
    form = {"grant_type": "client_credentials"}
    token = access._token(stack, form, authorization=f"Basic {basic}")
    left = [access.call(stack, "POST", "/items", token, "{}").json()["id"] for _ in range(3)]
    table, dynamodb = stack.outputs["table_name"], stack.cloud.client("dynamodb")
    for each in dynamodb.scan(TableName=table)["Items"]:
        if each["id"]["S"] in left[:2]:
            long_ago = {"created_at": {"S": "2026-01-01T00:00:00.000000Z"}}
            dynamodb.put_item(TableName=table, Item={**each, **long_ago})
    other = access.person_token(stack, "ann@example.com")
    kept = access.call(stack, "POST", "/items", other, "{}").json()["id"]
    assert Walked(stack).passed == 1
    assert sorted(items(stack)) == sorted([left[2], kept]), "and nothing of others, or of a walk"
    access.call(stack, "DELETE", f"/items/{left[2]}", token)
    access.call(stack, "DELETE", f"/items/{kept}", other)


def test_a_broken_route_is_red_named_and_an_alarm(stack: Session) -> None:
    iam = stack.cloud.client("iam")
    broken = {"RoleName": "tap-stack-api-dev", "PolicyName": "broken"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [DENIED]})
    iam.put_role_policy(**broken, PolicyDocument=document)
    try:
        walked = Walked(stack)
    finally:
        iam.delete_role_policy(**broken)
    assert walked.passed == 0
    assert walked.messages == ["POST /items: 500 Internal Server Error, not 201 walk"]
    assert [each["level"] for each in walked.errors] == ["ERROR"]
    assert state(stack) == "OK", "one of three"
    metric = {"MetricName": "WalksPassed", "Value": 0.0, "Timestamp": time.time() - 450}
    metric["Dimensions"] = [{"Name": "Environment", "Value": "dev"}]
    stack.cloud.client("cloudwatch").put_metric_data(Namespace="tap-stack", MetricData=[metric])
    assert state(stack) == "ALARM", "two of three"


def state(stack: Session) -> str:
    """How the alarm of the canary is."""
    found = stack.cloud.client("cloudwatch").describe_alarms(AlarmNames=[NAME])["MetricAlarms"]
    return str(found[0]["StateValue"])


def test_a_token_that_may_not_is_red(stack: Session) -> None:
    cognito, client = stack.cloud.client("cognito-idp"), machine(stack)
    of = {
        "UserPoolId": client["UserPoolId"], "ClientId": client["ClientId"],
        "AllowedOAuthFlows": ["client_credentials"], "AllowedOAuthFlowsUserPoolClient": True,
    }  # fmt: skip
    cognito.update_user_pool_client(**of, AllowedOAuthScopes=["items/read"])
    try:
        # The environment keeps its token: a failed walk has it ask for another.
        (message,) = Walked(stack).messages
    finally:
        cognito.update_user_pool_client(**of, AllowedOAuthScopes=client["AllowedOAuthScopes"])
    assert message.startswith("POST /items: 403 ")
    assert Walked(stack).passed == 1


def test_no_token_is_red(stack: Session) -> None:
    iam = stack.cloud.client("iam")
    denied = {**DENIED, "Action": "cognito-idp:DescribeUserPoolClient"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [denied]})
    lambdas, none = stack.cloud.client("lambda"), {"RoleName": NAME, "PolicyName": "none"}
    iam.put_role_policy(**none, PolicyDocument=document)
    try:
        lambdas.update_function_configuration(FunctionName=NAME, Description="a new environment")
        version = lambdas.publish_version(FunctionName=NAME)["Version"]
        lambdas.update_alias(FunctionName=NAME, Name="live", FunctionVersion=version)
        walked = Walked(stack)
    finally:
        iam.delete_role_policy(**none)
    assert walked.passed == 0
    assert "AccessDenied" in walked.messages[0] or "NotAuthorized" in walked.messages[0]
    assert Walked(stack).passed == 1


def test_its_schedule_walks_every_five_minutes(stack: Session) -> None:
    found = stack.cloud.client("scheduler").get_schedule(Name=NAME)
    assert found["ScheduleExpression"] == "cron(2/5 * * * ? *)"
    assert found["Target"]["Arn"].endswith(f":function:{NAME}:live")


def test_its_secret_is_in_no_variable_and_no_log(stack: Session) -> None:
    secret = machine(stack)["ClientSecret"]
    configuration = stack.cloud.client("lambda").get_function_configuration(FunctionName=NAME)
    assert secret not in json.dumps(configuration, default=str)
    events = stack.cloud.client("logs").filter_log_events(logGroupName=f"/aws/lambda/{NAME}")
    assert events["events"]
    assert secret not in json.dumps(events["events"])
