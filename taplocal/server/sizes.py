"""The sizes of DynamoDB's keys: 2,048 bytes of a partition key, 1,024 of a sort key.

MiniStack checks the keys of tables and the 400 KB of items. Here the keys of indexes have the same
limits, and all of them AWS's messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ministack.services import dynamodb

LIMITS = {"HASH": dynamodb._DDB_KEY_MAX_BYTES, "RANGE": dynamodb._DDB_SORT_KEY_MAX_BYTES}
INVALID = "One or more parameter values were invalid:"
HASH_KEY = f"{INVALID} Size of hashkey has exceeded the maximum size limit of2048 bytes"  # sic

Reason = Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]


def index_keys(wrong_type: Reason) -> Reason:
    """MiniStack's _index_key_type_reason, which each write asks, with the sizes."""

    def reason(table: Mapping[str, Any], item: Mapping[str, Any]) -> str | None:
        if found := wrong_type(table, item):
            return found
        for kind in ("GlobalSecondaryIndexes", "LocalSecondaryIndexes"):
            for index in table.get(kind) or ():
                for part in index["KeySchema"]:
                    name, most = part["AttributeName"], LIMITS[part["KeyType"]]
                    size = dynamodb._attribute_value_size(item.get(name))
                    if size > most:
                        return (
                            f"{INVALID} Size limit exceeded for Index Key {name} Actual Size: "
                            f"{size} bytes Max Size: {most} bytes IndexName: {index['IndexName']}"
                        )
        return None

    return reason


def table_keys(too_long: Callable[..., Any]) -> Callable[..., Any]:
    """MiniStack's _key_length_error with AWS's message for a partition key."""

    def error(item: Any, partition_key: str | None, sort_key: str | None) -> Any:
        if not (found := too_long(item, partition_key, None)):
            return too_long(item, None, sort_key)
        return dynamodb.error_response_json("ValidationException", HASH_KEY, found[0])

    return error


def install() -> None:
    """Replaces MiniStack's functions."""
    dynamodb._index_key_type_reason = index_keys(dynamodb._index_key_type_reason)
    dynamodb._key_length_error = table_keys(dynamodb._key_length_error)
