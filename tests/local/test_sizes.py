"""The sizes of DynamoDB's keys and items on the local cloud, with AWS's messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.local.small import Small

INDEX = "Size limit exceeded for Index Key {} Actual Size: {} bytes Max Size: {} bytes"
HASH = "Size of hashkey has exceeded the maximum size limit of2048 bytes"
RANGE = "Aggregated size of all range keys has exceeded the size limit of 1024 bytes"


@pytest.fixture
def table(small: Small) -> Any:
    """A table with a sort key and an index with one."""
    client, name = small.client("dynamodb"), small.name

    def keys(*names: str) -> Any:
        kinds = zip(names, ("HASH", "RANGE"), strict=True)
        return [{"AttributeName": each, "KeyType": kind} for each, kind in kinds]

    of_index = {"KeySchema": keys("c", "d"), "Projection": {"ProjectionType": "ALL"}}
    client.create_table(
        TableName=name,
        KeySchema=keys("a", "b"),
        AttributeDefinitions=[{"AttributeName": x, "AttributeType": "S"} for x in "abcd"],
        BillingMode="PAY_PER_REQUEST",
        GlobalSecondaryIndexes=[{"IndexName": "by_c", **of_index}],
    )
    small.later(client.delete_table, TableName=name)
    return client


def item(**sizes: int) -> dict[str, Any]:
    """An item whose attributes have these sizes in bytes."""
    whole = {"a": 1, "b": 1, **sizes}
    return {name: {"S": "é" * (size // 2) + "x" * (size % 2)} for name, size in whole.items()}


def update(client: Any, name: str, sizes: dict[str, int]) -> Any:
    (attribute,) = sizes
    return client.update_item(
        TableName=name,
        Key=item(),
        UpdateExpression=f"SET {attribute} = :v",
        ExpressionAttributeValues={":v": item(**sizes)[attribute]},
    )


Write = Callable[[Any, str, dict[str, int]], Any]
WRITES: dict[str, Write] = {
    "put": lambda client, name, sizes: client.put_item(TableName=name, Item=item(**sizes)),
    "batch": lambda client, name, sizes: client.batch_write_item(
        RequestItems={name: [{"PutRequest": {"Item": item(**sizes)}}]}
    ),
    "transaction": lambda client, name, sizes: client.transact_write_items(
        TransactItems=[{"Put": {"TableName": name, "Item": item(**sizes)}}]
    ),
    "update": update,
}


def told(call: Callable[[], Any]) -> str:
    """What an error says, a cancelled transaction by its reason."""
    with pytest.raises(ClientError) as caught:
        call()
    reasons = caught.value.response.get("CancellationReasons", [])
    return str(caught.value) + "".join(str(each) for each in reasons)


@pytest.mark.parametrize("write", ["put", "batch", "transaction", "update"])
@pytest.mark.parametrize(("name", "most"), [("c", 2048), ("d", 1024)])
def test_the_keys_of_an_index_are_bounded(
    small: Small, table: Any, write: str, name: str, most: int
) -> None:
    WRITES[write](table, small.name, {name: most})
    wrong = told(lambda: WRITES[write](table, small.name, {name: most + 1}))
    assert INDEX.format(name, most + 1, most) in wrong
    assert "IndexName: by_c" in wrong


@pytest.mark.parametrize("write", ["put", "batch", "transaction"])
@pytest.mark.parametrize(("name", "most", "message"), [("a", 2048, HASH), ("b", 1024, RANGE)])
def test_the_keys_of_a_table_are_bounded(
    small: Small, table: Any, write: str, name: str, most: int, message: str
) -> None:
    WRITES[write](table, small.name, {name: most})
    assert message in told(lambda: WRITES[write](table, small.name, {name: most + 1}))
    assert message in told(
        lambda: table.get_item(TableName=small.name, Key=item(**{name: most + 1}))
    )


@pytest.mark.parametrize("write", ["put", "batch", "transaction", "update"])
def test_an_item_has_at_most_400_kilobytes(small: Small, table: Any, write: str) -> None:
    names = len("ab" + "text")  # which count
    if write != "update":  # whose expression counts too
        WRITES[write](table, small.name, {"text": 409_600 - names - 2})
    wrong = told(lambda: WRITES[write](table, small.name, {"text": 409_600 - names - 1}))
    update_ = " to update" if write == "update" else ""
    assert f"Item size{update_} has exceeded the maximum allowed size" in wrong
