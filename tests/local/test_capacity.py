"""DynamoDB's capacity on the local cloud: measured by table and index, and bounded."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError

from taplocal.session import Session
from tests.local import small


@pytest.fixture
def table(deployed: Session) -> Iterator[str]:
    """A table with an index, of one unit each."""
    client, name = deployed.cloud.client("dynamodb"), f"t-{uuid.uuid4().hex}"
    units = {"ReadCapacityUnits": 1, "WriteCapacityUnits": 1}
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": x, "AttributeType": "S"} for x in ("id", "of")],
        ProvisionedThroughput=units,
        GlobalSecondaryIndexes=[
            {
                "IndexName": "by_of",
                "KeySchema": [{"AttributeName": "of", "KeyType": "HASH"}],
                "Projection": {"ProjectionType": "ALL"},
                "ProvisionedThroughput": units,
            }
        ],
    )
    yield name
    client.delete_table(TableName=name)


def item(kilobytes: int, **more: str) -> dict[str, Any]:
    size = 1_024 * kilobytes - 40
    return {k: {"S": v} for k, v in {"id": "1", "text": "x" * size, **more}.items()}


def total(deployed: Session, metric: str, table: str, **index: str) -> float:
    named = {"TableName": table, **index}
    return small.total(deployed.cloud.client("cloudwatch"), "AWS/DynamoDB", metric, named)


def test_what_calls_consume_is_in_the_metrics_by_table_and_index(
    deployed: Session, table: str
) -> None:
    client = deployed.cloud.client("dynamodb")
    client.put_item(TableName=table, Item=item(10, of="a"))
    read = client.get_item(
        TableName=table, Key={"id": {"S": "1"}}, ConsistentRead=True, ReturnConsumedCapacity="TOTAL"
    )
    assert read["ConsumedCapacity"] == {"TableName": table, "CapacityUnits": 3}  # 10 KB by 4
    found = client.query(
        TableName=table,
        IndexName="by_of",
        KeyConditionExpression="#of = :a",
        ExpressionAttributeNames={"#of": "of"},
        ExpressionAttributeValues={":a": {"S": "a"}},
    )
    assert found["Count"] == 1
    assert "ConsumedCapacity" not in found  # nobody asked
    written, index = "ConsumedWriteCapacityUnits", {"GlobalSecondaryIndexName": "by_of"}
    assert total(deployed, written, table) == total(deployed, written, table, **index) == 10
    assert total(deployed, "ConsumedReadCapacityUnits", table) == 3
    assert total(deployed, "ConsumedReadCapacityUnits", table, **index) == 1.5


def test_a_table_lends_five_minutes_of_its_units_and_then_throttles(
    deployed: Session, table: str
) -> None:
    client = deployed.cloud.client("dynamodb")
    client.put_item(TableName=table, Item=item(310))
    with pytest.raises(ClientError, match="ProvisionedThroughputExceededException"):
        client.put_item(TableName=table, Item=item(1))
    writes = [{"Put": {"TableName": table, "Item": item(1)}}]
    with pytest.raises(ClientError, match="TransactionCanceledException") as caught:
        client.transact_write_items(TransactItems=writes)
    (reason,) = caught.value.response["CancellationReasons"]
    assert reason["Code"] == "ProvisionedThroughputExceeded"
    assert client.get_item(TableName=table, Key={"id": {"S": "1"}})["Item"]  # reads are another's
    assert total(deployed, "WriteThrottleEvents", table) >= 2


def test_an_index_without_units_throttles_the_writes_of_its_table(
    deployed: Session, table: str
) -> None:
    client = deployed.cloud.client("dynamodb")
    client.put_item(TableName=table, Item=item(160, of="a"))
    client.put_item(TableName=table, Item=item(160, of="b"))  # two writes of the index
    with pytest.raises(ClientError, match="ProvisionedThroughputExceededException"):
        client.put_item(TableName=table, Item=item(1))
    index = {"GlobalSecondaryIndexName": "by_of"}
    assert total(deployed, "WriteThrottleEvents", table, **index) >= 1


def test_a_table_on_demand_is_not_bounded(deployed: Session) -> None:
    client, name = deployed.cloud.client("dynamodb"), deployed.outputs["table_name"]
    for number in range(3):
        key = {"owner": {"S": "nobody"}, "id": {"S": f"large-{number}"}}
        client.put_item(TableName=name, Item={**key, "text": {"S": "x" * 390_000}})
        client.delete_item(TableName=name, Key=key)


def test_on_demand_nothing_is_bounded_whatever_an_index_had_before(
    deployed: Session, table: str
) -> None:
    client = deployed.cloud.client("dynamodb")
    client.update_table(TableName=table, BillingMode="PAY_PER_REQUEST")
    for _ in range(4):
        client.put_item(TableName=table, Item=item(200, of="a"))


def test_a_table_is_restored_as_it_was_at_a_time(deployed: Session, table: str) -> None:
    client, copy = deployed.cloud.client("dynamodb"), f"{table}-restored"
    on = {"PointInTimeRecoveryEnabled": True}
    client.update_continuous_backups(TableName=table, PointInTimeRecoverySpecification=on)
    before = [{"id": {"S": x}, "of": {"S": "a"}} for x in ("changed", "deleted", "kept")]
    for each in before:
        client.put_item(TableName=table, Item=each)
    time.sleep(1)  # a restore is of a second
    at = datetime.now(UTC)
    time.sleep(1)
    client.put_item(TableName=table, Item={**before[0], "of": {"S": "b"}})
    client.delete_item(TableName=table, Key={"id": {"S": "deleted"}})
    client.put_item(TableName=table, Item={"id": {"S": "new"}})
    client.restore_table_to_point_in_time(
        SourceTableName=table, TargetTableName=copy, RestoreDateTime=at
    )
    found = client.scan(TableName=copy)["Items"]
    client.delete_table(TableName=copy)
    assert sorted(found, key=lambda each: each["id"]["S"]) == before


def test_a_table_is_restored_under_the_key_that_is_asked_for(deployed: Session, table: str) -> None:
    client, copies = deployed.cloud.client("dynamodb"), [f"{table}-{x}" for x in ("now", "backup")]
    on = {"PointInTimeRecoveryEnabled": True}
    client.update_continuous_backups(TableName=table, PointInTimeRecoverySpecification=on)
    arn = client.create_backup(TableName=table, BackupName=table)["BackupDetails"]["BackupArn"]
    key = {"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": deployed.outputs["key_arn"]}
    client.restore_table_to_point_in_time(
        SourceTableName=table,
        TargetTableName=copies[0],
        UseLatestRestorableTime=True,
        SSESpecificationOverride=key,
    )
    client.restore_table_from_backup(
        TargetTableName=copies[1], BackupArn=arn, SSESpecificationOverride=key
    )
    found = [client.describe_table(TableName=x)["Table"].get("SSEDescription") for x in copies]
    for each in copies:
        client.delete_table(TableName=each)
    client.delete_backup(BackupArn=arn)
    named = {"SSEType": "KMS", "KMSMasterKeyArn": deployed.outputs["key_arn"]}
    assert found == [{"Status": "ENABLED", **named}] * 2
