"""DynamoDB: tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError

from taplocal.cloud import Cloud
from taplocal.resources.base import Inputs, Named, Outputs, given, pascal, removed_tags, tag_list


class Table(Named):
    uses = """name billingMode readCapacity writeCapacity hashKey rangeKey
        attributes.name attributes.type ttl.attributeName
        ttl.enabled globalSecondaryIndexes.name globalSecondaryIndexes.keySchemas
        globalSecondaryIndexes.projectionType globalSecondaryIndexes.readCapacity
        globalSecondaryIndexes.writeCapacity pointInTimeRecovery.enabled serverSideEncryption
        deletionProtectionEnabled streamEnabled streamViewType tags"""
    replace_on = "name hashKey rangeKey"
    tag_operation = "dynamodb list_tags_of_resource ResourceArn Tags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return cloud.arn("dynamodb", f"table/{inputs['name']}")

    def tags(self, cloud: Cloud, inputs: Inputs) -> Mapping[str, str] | None:
        try:
            return super().tags(cloud, inputs)
        except ClientError as error:
            if error.response["Error"]["Code"] != "AccessDeniedException":
                raise
            return None  # the answer to the root of the account if there is no such table

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        dynamodb, name = cloud.client("dynamodb"), inputs["name"]
        keys = [{"AttributeName": inputs["hashKey"], "KeyType": "HASH"}]
        if range_key := inputs.get("rangeKey"):
            keys.append({"AttributeName": range_key, "KeyType": "RANGE"})
        indexes = [_index(each) for each in inputs.get("globalSecondaryIndexes", [])]
        table = dynamodb.create_table(
            TableName=name,
            KeySchema=keys,
            AttributeDefinitions=_attributes(inputs),
            Tags=tag_list(inputs.get("tags")),
            **given(GlobalSecondaryIndexes=indexes or None),
            StreamSpecification=_stream(inputs),
            **_settings(inputs),
        )["TableDescription"]
        dynamodb.get_waiter("table_exists").wait(
            TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 30}
        )
        self._update_extras(cloud, inputs)
        return name, {"arn": table["TableArn"], "streamArn": table.get("LatestStreamArn", "")}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        dynamodb = cloud.client("dynamodb")
        before = _settings(old)
        if changed := {key: x for key, x in _settings(new).items() if before.get(key) != x}:
            _change(dynamodb, resource_id, **changed)
        indexes, wanted = (
            {each["name"]: each for each in side.get("globalSecondaryIndexes", [])}
            for side in (old, new)
        )
        for name, index in wanted.items():
            if (
                name in indexes
                and indexes[name] != index
                and _differs_in_capacity_only(indexes[name], index)
            ):
                change = [{"Update": {"IndexName": name, **_capacity(index)}}]
                _change(dynamodb, resource_id, GlobalSecondaryIndexUpdates=change)
                indexes[name] = index
        for name in [name for name, index in indexes.items() if wanted.get(name) != index]:
            dynamodb.update_table(
                TableName=resource_id, GlobalSecondaryIndexUpdates=[{"Delete": {"IndexName": name}}]
            )
        for index in [index for name, index in wanted.items() if indexes.get(name) != index]:
            change = [{"Create": _index(index)}]
            dynamodb.update_table(
                TableName=resource_id,
                AttributeDefinitions=_attributes(new),
                GlobalSecondaryIndexUpdates=change,
            )
        _change_stream(dynamodb, resource_id, _stream(old), _stream(new))
        self._update_extras(cloud, new, old)
        if removed := removed_tags(old, new):
            dynamodb.untag_resource(ResourceArn=outputs["arn"], TagKeys=removed)
        dynamodb.tag_resource(ResourceArn=outputs["arn"], Tags=tag_list(new.get("tags")))
        found = dynamodb.describe_table(TableName=resource_id)["Table"]
        return {**outputs, "streamArn": found.get("LatestStreamArn", "")}

    @staticmethod
    def _update_extras(cloud: Cloud, inputs: Inputs, old: Mapping[str, Any] | None = None) -> None:
        """Sets what has an API operation of its own: time to live and point-in-time recovery."""
        dynamodb, before = cloud.client("dynamodb"), old or {}
        ttl, recovery = inputs.get("ttl"), inputs.get("pointInTimeRecovery")
        if ttl and ttl != before.get("ttl"):
            dynamodb.update_time_to_live(
                TableName=inputs["name"], TimeToLiveSpecification=pascal(ttl)
            )
        if recovery and recovery != before.get("pointInTimeRecovery"):
            specification = {"PointInTimeRecoveryEnabled": recovery["enabled"]}
            dynamodb.update_continuous_backups(
                TableName=inputs["name"], PointInTimeRecoverySpecification=specification
            )

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        dynamodb = cloud.client("dynamodb")
        if inputs.get("deletionProtectionEnabled"):
            dynamodb.update_table(TableName=resource_id, DeletionProtectionEnabled=False)
        dynamodb.delete_table(TableName=resource_id)


def _change(dynamodb: Any, name: str, **changes: Any) -> None:
    """Changes a table; no error if an interrupted run has changed it already."""
    try:
        dynamodb.update_table(TableName=name, **changes)
    except ClientError as error:
        if "will not change" not in str(error):
            raise


def _change_stream(dynamodb: Any, name: str, old: Inputs, new: Inputs) -> None:
    """Turns a stream on or off; one with another view is another stream."""
    if old["StreamEnabled"] and old != new:
        _change(dynamodb, name, StreamSpecification={"StreamEnabled": False})
    if new["StreamEnabled"] and old != new:
        _change(dynamodb, name, StreamSpecification=new)


def _attributes(inputs: Inputs) -> list[dict[str, str]]:
    return [
        {"AttributeName": each["name"], "AttributeType": each["type"]}
        for each in inputs["attributes"]
    ]


def _differs_in_capacity_only(old: Inputs, new: Inputs) -> bool:
    return all(
        old.get(key) == new.get(key)
        for key in old.keys() | new.keys()
        if key not in ("readCapacity", "writeCapacity")
    )


def _index(index: Inputs) -> dict[str, Any]:
    return {
        "IndexName": index["name"],
        "KeySchema": pascal(index["keySchemas"]),
        "Projection": {"ProjectionType": index["projectionType"]},
        **_capacity(index),
    }


def _capacity(inputs: Inputs) -> dict[str, Any]:
    """The provisioned throughput; nothing if the table is on demand."""
    read, write = inputs.get("readCapacity"), inputs.get("writeCapacity")
    units = {"ReadCapacityUnits": read, "WriteCapacityUnits": write}
    return {"ProvisionedThroughput": units} if read else {}


def _settings(inputs: Inputs) -> dict[str, Any]:
    encryption = inputs.get("serverSideEncryption") or {}
    return _capacity(inputs) | given(
        BillingMode=inputs.get("billingMode"),
        DeletionProtectionEnabled=inputs.get("deletionProtectionEnabled"),
        SSESpecification={
            "Enabled": True,
            "SSEType": "KMS",
            "KMSMasterKeyId": encryption["kmsKeyArn"],
        }
        if encryption.get("enabled")
        else None,
    )


def _stream(inputs: Inputs) -> dict[str, Any]:
    """What the table tells of its changes, and whether it does."""
    if not inputs.get("streamEnabled"):
        return {"StreamEnabled": False}
    return {"StreamEnabled": True, "StreamViewType": inputs["streamViewType"]}
