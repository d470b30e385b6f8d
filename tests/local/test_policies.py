"""Least privilege, enforced: what each function's role may and may not do on the emulated AWS."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.config import Config

from taplocal.session import Session
from tests.local.small import code


def as_role(deployed: Session, role: str, service: str) -> Any:
    """A client with the credentials of a role."""
    arn = f"arn:aws:iam::{deployed.cloud.account}:role/{role}"
    keys = deployed.cloud.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")[
        "Credentials"
    ]
    session = boto3.Session(
        keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], deployed.cloud.region
    )
    once = Config(retries={"total_max_attempts": 1})
    return session.client(service, endpoint_url=deployed.cloud.emulator.url, config=once)


API, ROTATION, FILES = "tap-stack-api-dev", "tap-stack-rotation-dev", "tap-stack-files-dev"
TABLE, KEY = "tap-stack-items-dev", "/tap-stack/dev/paging-key"
GROUP = {"logGroupName": f"/aws/lambda/{API}", "logStreamName": "s"}
ID = {"id": {"S": "nothing"}}
ITEM = {**ID, "owner": {"S": "nobody"}}
OBJECT = {"Bucket": "tap-stack-files-dev-000000000000", "Key": "t-permissions/x"}
LOG_OBJECT = {**OBJECT, "Bucket": "tap-stack-files-logs-dev-000000000000"}
RECORD = {"TableName": FILES, "Item": {**ID, "record": {"S": "permissions"}}}

#: Role, service, operation, arguments, whether it may.
CALLS: list[tuple[str, str, str, dict[str, Any], bool]] = [
    (API, "dynamodb", "get_item", {"TableName": TABLE, "Key": ITEM}, True),
    (API, "dynamodb", "put_item", {"TableName": TABLE, "Item": ITEM}, True),
    (API, "dynamodb", "delete_item", {"TableName": TABLE, "Key": ITEM}, True),
    (API, "dynamodb", "scan", {"TableName": TABLE}, False),
    (API, "dynamodb", "delete_table", {"TableName": TABLE}, False),
    (API, "dynamodb", "get_item", {"TableName": "other", "Key": ID}, False),
    (API, "ssm", "get_parameter", {"Name": KEY}, True),
    (API, "ssm", "get_parameter", {"Name": "/other"}, False),
    (
        API,
        "ssm",
        "put_parameter",
        {"Name": KEY, "Value": "x", "Type": "SecureString", "Overwrite": True},
        False,
    ),
    (API, "logs", "create_log_stream", GROUP, True),
    (API, "logs", "create_log_group", {"logGroupName": "/other"}, False),
    (API, "logs", "delete_log_group", {"logGroupName": GROUP["logGroupName"]}, False),
    (API, "iam", "list_roles", {}, False),
    (API, "s3", "list_buckets", {}, False),
    (ROTATION, "ssm", "get_parameter", {"Name": KEY}, True),
    (ROTATION, "ssm", "delete_parameter", {"Name": KEY}, False),
    (ROTATION, "dynamodb", "get_item", {"TableName": TABLE, "Key": ID}, False),
    (API, "s3", "put_object", OBJECT, True),
    (API, "s3", "put_object", LOG_OBJECT, False),
    (API, "s3", "get_object", OBJECT, False),
    (API, "s3", "get_object", LOG_OBJECT, False),
    (API, "s3", "delete_object", OBJECT, True),
    (API, "s3", "delete_object", {**OBJECT, "VersionId": "null"}, False),
    (API, "s3", "list_objects_v2", {"Bucket": OBJECT["Bucket"]}, True),
    (API, "s3", "list_object_versions", {"Bucket": OBJECT["Bucket"]}, False),
    (API, "dynamodb", "put_item", RECORD, False),
    (FILES, "s3", "get_object", OBJECT, True),
    (FILES, "s3", "get_object", LOG_OBJECT, False),
    (FILES, "s3", "put_object", OBJECT, False),
    (FILES, "s3", "delete_object", OBJECT, False),
    (FILES, "dynamodb", "put_item", RECORD, True),
    (FILES, "dynamodb", "get_item", {"TableName": FILES, "Key": RECORD["Item"]}, True),
    (FILES, "dynamodb", "delete_item", {"TableName": FILES, "Key": ID}, False),
    (FILES, "dynamodb", "scan", {"TableName": FILES}, False),
    (FILES, "dynamodb", "put_item", {"TableName": TABLE, "Item": ID}, False),
    (FILES, "ssm", "get_parameter", {"Name": KEY}, False),
]


@pytest.mark.parametrize(("role", "service", "operation", "arguments", "allowed"), CALLS)
def test_a_role_may_do_what_its_function_does_and_no_more(
    deployed: Session,
    role: str,
    service: str,
    operation: str,
    arguments: dict[str, Any],
    allowed: bool,
) -> None:
    denied = code(lambda: getattr(as_role(deployed, role, service), operation)(**arguments))
    assert ("AccessDenied" in denied) is not allowed, denied


def test_queries_reach_the_indexes_and_not_the_table(deployed: Session) -> None:
    query = {
        "KeyConditionExpression": "#k = :v",
        "ExpressionAttributeValues": {":v": {"S": "x"}},
        "TableName": TABLE,
    }
    api = as_role(deployed, API, "dynamodb")
    assert (
        code(
            lambda: api.query(
                IndexName="by_owner", ExpressionAttributeNames={"#k": "owner"}, **query
            )
        )
        == ""
    )
    assert "AccessDenied" in code(lambda: api.query(ExpressionAttributeNames={"#k": "id"}, **query))
