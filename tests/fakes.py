"""Fakes of the AWS services that the functions call: in memory, with the answers and errors of the SDK."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError

Item = dict[str, Any]


def client_error(
    code: str, operation: str, message: str = "", retries: int = 0, **extra: Any
) -> ClientError:
    """The exception that boto3 raises for an error answer."""
    metadata = {"RetryAttempts": retries}
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata, **extra},
        operation,
    )


class FakeDynamoDB:
    """One table with conditional writes, transactions and queries, for the expressions that we use.

    `before` may raise instead of a call; with `lose_answers` every write happens, its answer is lost, and
    the SDK sends it again, as after a timeout.
    """

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.calls: list[str] = []
        self.before: Callable[[str, dict[str, Any]], None] = lambda operation, arguments: None
        self.lose_answers = False

    def get_item(self, **arguments: Any) -> dict[str, Any]:
        self._called("GetItem", arguments)
        item = self.items.get(arguments["Key"]["id"]["S"])
        return {**({"Item": copy.deepcopy(item)} if item else {}), **_capacity(1)}

    def put_item(self, **arguments: Any) -> dict[str, Any]:
        return self._write("PutItem", arguments, self._put)

    def update_item(self, **arguments: Any) -> dict[str, Any]:
        return self._write("UpdateItem", arguments, self._update)

    def delete_item(self, **arguments: Any) -> dict[str, Any]:
        return self._write("DeleteItem", arguments, self._delete)

    def transact_write_items(self, **arguments: Any) -> dict[str, Any]:
        self._called("TransactWriteItems", arguments)
        puts = [each["Put"] for each in arguments["TransactItems"]]
        stands = [self.items.get(put["Item"]["id"]["S"]) for put in puts]
        held = [_holds(put, item) for put, item in zip(puts, stands, strict=True)]
        if not all(held):
            reasons = [
                {"Code": "None"}
                if ok
                else {"Code": "ConditionalCheckFailed", **({"Item": item} if item else {})}
                for ok, item in zip(held, stands, strict=True)
            ]
            raise client_error(
                "TransactionCanceledException", "TransactWriteItems", CancellationReasons=reasons
            )
        for put in puts:
            self._put(put)
        return {"ConsumedCapacity": [{"CapacityUnits": 2.0 * len(puts)}]}

    def query(self, **arguments: Any) -> dict[str, Any]:
        self._called("Query", arguments)
        key = arguments["ExpressionAttributeNames"]["#key"]
        value = arguments["ExpressionAttributeValues"][":value"]
        found = [
            item for item in self.items.values() if item.get(key) == value and "created_at" in item
        ]
        order = sorted(found, key=_place, reverse=not arguments["ScanIndexForward"])
        start = arguments.get("ExclusiveStartKey")
        if start:
            ahead = arguments["ScanIndexForward"]
            order = [
                item
                for item in order
                if (_place(item) > _place(start)) == ahead and _place(item) != _place(start)
            ]
        page = order[: arguments["Limit"]]
        more = (
            {"LastEvaluatedKey": page[-1]}
            if len(page) < len(order) or len(page) == arguments["Limit"]
            else {}
        )
        return {"Items": copy.deepcopy(page), **more, **_capacity(0.5)}

    def _called(self, operation: str, arguments: dict[str, Any]) -> None:
        self.calls.append(operation)
        self.before(operation, arguments)

    def _write(
        self, operation: str, arguments: dict[str, Any], apply: Callable[[Item], Any]
    ) -> dict[str, Any]:
        self._called(operation, arguments)
        retries = 0
        if self.lose_answers:
            self._conditional(operation, arguments, retries)
            apply(arguments)
            retries = 1
        self._conditional(operation, arguments, retries)
        return {
            **({"Attributes": copy.deepcopy(each)} if (each := apply(arguments)) else {}),
            **_capacity(1),
        }

    def _conditional(self, operation: str, arguments: dict[str, Any], retries: int) -> None:
        identity = (arguments.get("Key") or arguments["Item"])["id"]["S"]
        item = self.items.get(identity)
        if not _holds(arguments, item):
            code = "ConditionalCheckFailedException"
            extra: dict[str, Any] = {"Item": item} if item else {}
            raise client_error(code, operation, retries=retries, **extra)

    def _put(self, arguments: Item) -> None:
        self.items[arguments["Item"]["id"]["S"]] = copy.deepcopy(arguments["Item"])

    def _update(self, arguments: Item) -> Item:
        item = self.items[arguments["Key"]["id"]["S"]]
        values = arguments["ExpressionAttributeValues"]
        changes, _, removed = (
            arguments["UpdateExpression"].removeprefix("SET ").partition(" REMOVE ")
        )
        for name, value in (each.split(" = ") for each in changes.split(", ")):
            if " + " in value:
                item[name] = {
                    "N": str(int(item[name]["N"]) + int(values[value.split(" + ")[1]]["N"]))
                }
            else:
                item[name] = copy.deepcopy(values[value])
        item.pop(removed, None)
        return item

    def _delete(self, arguments: Item) -> None:
        self.items.pop(arguments["Key"]["id"]["S"], None)


def _capacity(units: float) -> dict[str, Any]:
    return {"ConsumedCapacity": {"CapacityUnits": units}}


def _place(item: Item) -> tuple[str, str]:
    return item["created_at"]["S"], item["id"]["S"]


def _holds(arguments: Item, item: Item | None) -> bool:
    condition = arguments["ConditionExpression"]
    return any(
        all(_term(each, arguments, item) for each in way.split(" AND "))
        for way in condition.split(" OR ")
    )


def _term(term: str, arguments: Item, item: Item | None) -> bool:
    names, values = (
        arguments.get("ExpressionAttributeNames", {}),
        arguments.get("ExpressionAttributeValues", {}),
    )
    if term == "attribute_not_exists(id)":
        return item is None
    match = re.fullmatch(r"(#?\w+) (=|<|IN) (.+)", term)
    assert match, f"the fake does not know the condition {term!r}"
    name, operator, operand = match.groups()
    held = (item or {}).get(names.get(name, name))
    if operator == "<":
        return held is not None and int(held["N"]) < int(values[operand]["N"])
    return held is not None and held in [values[each] for each in operand.strip("()").split(", ")]


class FakeSSM:
    """Parameters by name; `fail` makes every call raise."""

    def __init__(self, **parameters: str):
        self.parameters, self.fail, self.calls = parameters, False, 0

    def get_parameter(self, **arguments: Any) -> dict[str, Any]:
        self.calls += 1
        if self.fail:
            raise client_error("ThrottlingException", "GetParameter")
        return {"Parameter": {"Value": self.parameters[arguments["Name"]]}}

    def put_parameter(self, **arguments: Any) -> None:
        self.parameters[arguments["Name"]] = arguments["Value"]
