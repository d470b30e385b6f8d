"""Who invokes a function needs its permission, and a schedule the rights of its role."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError

from taplocal import access, emulator
from taplocal.session import Session
from tests.local.small import HANG_SECONDS, NOTHING, Small, eventually, statement
from tests.local.test_file_pipeline import Pipeline
from tests.local.test_policies import API, FILES

GATEWAY = "apigateway.amazonaws.com"


def forbid(small: Small) -> None:
    small.client("lambda").remove_permission(FunctionName=small.name, StatementId="p")


def dropped(small: Small, source: str) -> int:
    """How many times a bucket or a topic has told that it may not invoke a function."""
    log = small.deployed.folder / emulator.LOG
    return log.read_text(errors="replace").count(f"[permissions] {source}: ")


def wait_for_dropped(small: Small, source: str, number: int) -> None:
    """Waits until it has told so many times."""
    eventually(lambda: dropped(small, source) == number)


def test_the_gateway_needs_a_permission_for_the_method_and_the_path(small: Small) -> None:
    api = small.api(small.function(), "GET /a/{id}", "$default")
    assert small.get(api, "/a/1")[::2] == (500, {"message": "Internal Server Error"})
    for source, status in (("POST/a/*", 500), ("GET/b/*", 500), ("*/a/{id}", 200), ("*", 200)):
        small.permit(GATEWAY, small.arn("execute-api", f"{api}/*/{source}"))
        assert small.get(api, "/a/1")[0] == status, source
        forbid(small)
    small.permit(GATEWAY, small.arn("execute-api", f"{api}/$default/$default"))
    assert (small.get(api, "/b")[0], small.get(api, "/a/1")[0]) == (200, 500)
    forbid(small)
    small.permit("s3.amazonaws.com", small.arn("execute-api", f"{api}/*"))
    assert small.get(api, "/b")[0] == 500
    assert small.count("Invocations") == 3


@contextmanager
def without(deployed: Session, function: str) -> Iterator[None]:
    """Takes away the permission of a function's live version, for a moment."""
    functions, named = deployed.cloud.client("lambda"), {"FunctionName": function}
    live = {**named, "Qualifier": "live"}
    (given,) = json.loads(functions.get_policy(**live)["Policy"])["Statement"]
    functions.remove_permission(**live, StatementId=given["Sid"])
    conditions = given["Condition"]
    account = conditions.get("StringEquals", {}).get("AWS:SourceAccount")
    try:
        yield
    finally:
        functions.add_permission(
            **live,
            StatementId=given["Sid"],
            Action=given["Action"],
            Principal=given["Principal"]["Service"],
            SourceArn=conditions["ArnLike"]["AWS:SourceArn"],
            **({"SourceAccount": account} if account else {}),
        )


def test_the_api_of_the_stack_needs_the_permission_that_the_program_registers(
    deployed: Session,
) -> None:
    token = access.person_token(deployed, "a@b.example")
    with without(deployed, API):
        assert access.call(deployed, "GET", "/items/any", token).status == 500
    assert access.call(deployed, "GET", "/items/any", token).status == 404


def test_the_files_of_the_stack_need_the_permission_that_the_program_registers(
    small: Small, deployed: Session
) -> None:
    pipeline, bucket = Pipeline(deployed), f"arn:aws:s3:::{deployed.outputs['files_bucket_name']}"
    before = dropped(small, bucket)  # of other tests
    with without(deployed, FILES):
        pipeline.put("before")
        eventually(lambda: dropped(small, bucket) > before)
    pipeline.put("after")
    assert pipeline.newest("after")
    assert pipeline.records("before") == {}


def test_s3_notifies_no_function_without_its_permission(small: Small) -> None:
    s3, function = small.client("s3"), small.function()
    small.bucket()
    wanted = [{"LambdaFunctionArn": function, "Events": ["s3:ObjectCreated:*"]}]
    notify = {"LambdaFunctionConfigurations": wanted}

    def put() -> None:
        s3.put_bucket_notification_configuration(
            Bucket=small.name, NotificationConfiguration=notify
        )

    with pytest.raises(ClientError, match="Unable to validate the following destination config"):
        put()
    source = f"arn:aws:s3:::{small.name}"
    small.permit("s3.amazonaws.com", source, SourceAccount="111111111111")
    with pytest.raises(ClientError, match="InvalidArgument"):
        put()
    forbid(small)
    small.permit("s3.amazonaws.com", source, SourceAccount=small.deployed.cloud.account)
    put()
    forbid(small)
    s3.put_object(Bucket=small.name, Key="x", Body=b"1")
    wait_for_dropped(small, source, 1)
    small.permit("s3.amazonaws.com", source)
    s3.put_object(Bucket=small.name, Key="x", Body=b"2")
    small.wait_for("Invocations", 1)


def test_a_topic_and_a_rule_need_a_permission(small: Small) -> None:
    sns, events, function = small.client("sns"), small.client("events"), small.function()
    topic = sns.create_topic(Name=small.name)["TopicArn"]
    small.later(sns.delete_topic, TopicArn=topic)
    sns.subscribe(TopicArn=topic, Protocol="lambda", Endpoint=function)
    rule = events.put_rule(Name=small.name, EventPattern='{"source": ["small"]}')["RuleArn"]
    events.put_targets(Rule=small.name, Targets=[{"Id": "1", "Arn": function}])
    small.later(events.delete_rule, Name=small.name)
    small.later(events.remove_targets, Rule=small.name, Ids=["1"])

    def publish() -> None:
        sns.publish(TopicArn=topic, Message="{}")

    def put() -> None:
        events.put_events(Entries=[{"Source": "small", "DetailType": "x", "Detail": "{}"}])

    def wait_for_topic(number: int) -> None:
        wait_for_dropped(small, topic, number)

    def wait_for_rule(number: int) -> None:
        small.wait_for("FailedInvocations", number, "AWS/Events", RuleName=small.name)

    calls: list[tuple[str, str, Callable[[], None], Callable[[int], None]]] = [
        ("sns.amazonaws.com", topic, publish, wait_for_topic),
        ("events.amazonaws.com", rule, put, wait_for_rule),
    ]
    for done, (principal, source, call, wait) in enumerate(calls, start=1):
        call()
        wait(1)
        small.permit(principal, source.replace(small.name, "other"))
        call()
        wait(2)
        forbid(small)
        small.permit(principal, source)
        call()
        small.wait_for("Invocations", done)
        forbid(small)


def test_a_schedule_needs_its_roles_rights_and_no_permission(small: Small) -> None:
    scheduler, function = small.client("scheduler"), small.function()
    role = small.role(NOTHING, service="scheduler.amazonaws.com")
    group = {"ScheduleGroup": "default"}
    failed = small.count("TargetErrorCount", "AWS/Scheduler", **group)

    def schedule(name: str, target_role: str, **more: str) -> None:
        at = datetime.now(UTC) + timedelta(seconds=1)
        scheduler.create_schedule(
            Name=name,
            ScheduleExpression=f"at({at:%Y-%m-%dT%H:%M:%S})",
            FlexibleTimeWindow={"Mode": "OFF"},
            Target={"Arn": function, "RoleArn": target_role, "Input": "{}"},
            **more,
        )
        small.later(scheduler.delete_schedule, Name=name)

    schedule(f"{small.name}-1", role)
    small.wait_for("TargetErrorCount", failed + 1, "AWS/Scheduler", **group)
    may = statement("lambda:InvokeFunction", on=function)
    of_lambda = small.arn("iam", f"role/{small.name}-lambda").replace(
        small.deployed.cloud.region, ""
    )
    small.grant(of_lambda, may)  # which the scheduler cannot assume
    schedule(f"{small.name}-2", of_lambda)
    small.wait_for("TargetErrorCount", failed + 2, "AWS/Scheduler", **group)
    key = small.key()
    small.grant(role, may)
    schedule(f"{small.name}-3", role, KmsKeyArn=key)
    small.wait_for("TargetErrorCount", failed + 3, "AWS/Scheduler", **group)
    small.grant(role, may, statement("kms:Decrypt", on=key))
    schedule(f"{small.name}-4", role, KmsKeyArn=key)
    small.wait_for("Invocations", 1)


def test_a_pipe_needs_its_roles_rights_and_the_key_of_the_table(small: Small) -> None:
    dynamodb, events, key = small.client("dynamodb"), small.client("events"), small.key()
    stream = dynamodb.create_table(
        TableName=small.name,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        SSESpecification={"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": key},
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
    )["TableDescription"]["LatestStreamArn"]
    small.later(dynamodb.delete_table, TableName=small.name)
    small.queue()
    pattern = {"source": [f"Pipe {small.name}"], "detail": {"eventSource": ["aws:dynamodb"]}}
    events.put_rule(Name=small.name, EventPattern=json.dumps(pattern))
    small.later(events.delete_rule, Name=small.name)
    target = {"Id": "q", "Arn": small.arn("sqs", small.name)}
    events.put_targets(Rule=small.name, Targets=[target])
    role, rights = small.pipe(stream)
    uses_key = statement("kms:Decrypt", on=key)
    dynamodb.put_item(TableName=small.name, Item={"id": {"S": "x"}})
    for lacking in (rights, [rights[0], uses_key], [rights[1], uses_key]):
        small.grant(role, *lacking)
        failed = small.count("ExecutionFailed", "AWS/EventBridge/Pipes", PipeName=small.name)
        deadline = time.monotonic() + HANG_SECONDS
        while (
            small.count("ExecutionFailed", "AWS/EventBridge/Pipes", PipeName=small.name)
            <= failed + 1  # one may be of before the change
        ):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert small.messages() == []
    small.grant(role, *rights, uses_key)
    (message,) = eventually(small.messages)
    assert json.loads(message["Body"])["detail"]["dynamodb"]["NewImage"] == {"id": {"S": "x"}}


def test_a_function_needs_a_role_that_lambda_may_assume(small: Small) -> None:
    role = small.role(NOTHING, service="scheduler.amazonaws.com")
    with pytest.raises(ClientError, match="cannot be assumed by Lambda"):
        small.function(Role=role)
