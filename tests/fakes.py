"""Fakes of the AWS services that the functions call: in memory, with the responses and errors of the SDK."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError

import tap_stack
from tap_stack import FILE_INDEXES, ITEM_INDEXES, ServiceError

Item = dict[str, Any]
#: What a table, or an index, is sorted by.
SORTS = {
    "items": {"by_owner": "created_at", "by_category": "created_at"},
    "files": dict.fromkeys(("by_owner", "by_folder", "by_content_type"), "uploaded_at"),
}


def copied(value: Any) -> Any:
    """A deep copy of an item, or of a part of it."""
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return [copied(each) for each in value] if isinstance(value, list) else value


def client_error(
    code: str, operation: str, message: str = "", retries: int = 0, **extra: Any
) -> ClientError:
    """The exception that boto3 raises for an error response; a code may be its status."""
    status = int(code) if code.isdigit() else 400
    metadata = {"RetryAttempts": retries, "HTTPStatusCode": status}
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata, **extra},
        operation,
    )


def service_error(
    code: str, operation: str, message: str = "", retries: int = 0, **extra: Any
) -> ServiceError:
    """The exception that a Service raises for an error response."""
    metadata = {"RetryAttempts": retries}
    status = 500 if code == "InternalServerError" else 400
    error = tap_stack.service_error(operation, status, {"__type": code, "message": message})
    error.response |= {"ResponseMetadata": metadata, **extra}
    return error


class FakeContext:
    """Lambda's context of an invocation that has so many seconds left."""

    aws_request_id = "r"

    def __init__(self, seconds: float = 15):
        self.seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(self.seconds * 1000)


#: Table -> its key.
KEYS = {"items": ("owner", "id"), "files": ("id", "record")}
INDEXES = {"items": ITEM_INDEXES, "files": FILE_INDEXES}


class FakeDynamoDB:
    """Tables with conditional writes, transactions and queries, for the expressions that we use.

    `before` and `after` may raise instead of a call or of its response; with `lose_responses` every write
    happens, its response is lost, and the SDK sends it again, as after a timeout.
    """

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Item]] = {"items": {}, "files": {}}
        self.calls: list[str] = []
        self.before: Callable[[str, dict[str, Any]], None] = lambda operation, arguments: None
        self.after: Callable[[str], None] = lambda operation: None
        self.lose_responses = False
        self.meanwhile: Callable[[], None] = lambda: None  # between a lost response and the retry

    @property
    def items(self) -> dict[str, Item]:
        """The items table, by owner and id with a space between."""
        return self.tables["items"]

    @property
    def files(self) -> dict[str, Item]:
        """The files table, by id and record with a space between."""
        return self.tables["files"]

    def get_item(self, **arguments: Any) -> dict[str, Any]:
        self._called("GetItem", arguments)
        item = self._item(arguments)
        return {**({"Item": copied(item)} if item else {}), **_capacity(1)}

    def put_item(self, **arguments: Any) -> dict[str, Any]:
        return self._write("PutItem", arguments, self._put)

    def update_item(self, **arguments: Any) -> dict[str, Any]:
        return self._write("UpdateItem", arguments, self._update)

    def delete_item(self, **arguments: Any) -> dict[str, Any]:
        return self._write("DeleteItem", arguments, self._delete)

    def transact_write_items(self, **arguments: Any) -> dict[str, Any]:
        self._called("TransactWriteItems", arguments)
        writes = [next(iter(each.items())) for each in arguments["TransactItems"]]
        items = [self._item(write) for _, write in writes]
        outcomes = [_holds(write, item) for (_, write), item in zip(writes, items, strict=True)]
        if not all(outcomes):
            reasons = [
                {"Code": "None"}
                if ok
                else {"Code": "ConditionalCheckFailed", **({"Item": item} if item else {})}
                for ok, item in zip(outcomes, items, strict=True)
            ]
            raise service_error(
                "TransactionCanceledException", "TransactWriteItems", CancellationReasons=reasons
            )
        for kind, write in writes:
            (self._put if kind == "Put" else self._update)(write)
        self.after("TransactWriteItems")
        return {"ConsumedCapacity": [{"CapacityUnits": 2.0 * len(writes)}]}

    def query(self, **arguments: Any) -> dict[str, Any]:
        self._called("Query", arguments)
        items = self.tables[arguments["TableName"]].values()
        terms = arguments["KeyConditionExpression"].replace("BETWEEN :from AND", "BETWEEN :from TO")
        found = [
            item for item in items if all(_term(x, arguments, item) for x in terms.split(" AND "))
        ]
        sort = SORTS[arguments["TableName"]].get(arguments.get("IndexName", ""), "record")

        key = arguments["KeyConditionExpression"].split()[0]
        partition = arguments["ExpressionAttributeNames"].get(key, key)
        if index := arguments.get("IndexName"):
            assert partition == INDEXES[arguments["TableName"]][index], f"no key of {index}"
        names = {sort, partition}
        names |= set(KEYS[arguments["TableName"]])

        def position(item: Item) -> tuple[str, str]:
            return item[sort]["S"], item["id"]["S"]

        found = [item for item in found if sort in item]
        forward, limit = arguments.get("ScanIndexForward", True), arguments.get("Limit", len(found))
        order = sorted(found, key=position, reverse=not forward)
        if start := arguments.get("ExclusiveStartKey"):
            assert start.keys() == names, f"{start} is no position there"
            order = [
                x
                for x in order
                if (position(x) > position(start)) == forward and position(x) != position(start)
            ]
        page = order[:limit]
        last = {name: page[-1][name] for name in names} if page else {}
        more = {"LastEvaluatedKey": last} if page and len(page) == limit else {}
        left = [each for each in page if _holds(arguments, each, "FilterExpression")]
        return {"Items": copied(left), **more, **_capacity(0.5)}

    def _called(self, operation: str, arguments: dict[str, Any]) -> None:
        self.calls.append(operation)
        self.before(operation, arguments)

    def _write(
        self, operation: str, arguments: dict[str, Any], apply: Callable[[Item], Any]
    ) -> dict[str, Any]:
        self._called(operation, arguments)
        retries = 0
        if self.lose_responses:
            self._conditional(operation, arguments, retries)
            apply(arguments)
            self.meanwhile()
            retries = 1
        self._conditional(operation, arguments, retries)
        return {
            **({"Attributes": copied(each)} if (each := apply(arguments)) else {}),
            **_capacity(1),
        }

    def _conditional(self, operation: str, arguments: dict[str, Any], retries: int) -> None:
        item = self._item(arguments)
        if not _holds(arguments, item):
            code = "ConditionalCheckFailedException"
            extra: dict[str, Any] = {"Item": item} if item else {}
            raise service_error(code, operation, retries=retries, **extra)

    def _item(self, arguments: Item) -> Item | None:
        return self.tables[arguments["TableName"]].get(_identity(arguments))

    def _put(self, arguments: Item) -> None:
        table = self.tables[arguments["TableName"]]
        table[_identity(arguments)] = copied(arguments["Item"])

    def _update(self, arguments: Item) -> Item:
        if arguments["UpdateExpression"].startswith("ADD "):
            return self._add(arguments)
        item = self.tables[arguments["TableName"]][_identity(arguments)]
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
                item[name] = copied(values[value])
        item.pop(removed, None)
        return item

    def _add(self, arguments: Item) -> Item:
        table = self.tables[arguments["TableName"]]
        item = table.setdefault(_identity(arguments), copied(arguments["Key"]))
        for name, value in re.findall(r"(#\w+) (:\w+)", arguments["UpdateExpression"]):
            attribute = arguments["ExpressionAttributeNames"][name]
            before = int(item.get(attribute, {"N": "0"})["N"])
            added = int(arguments["ExpressionAttributeValues"][value]["N"])
            item[attribute] = {"N": str(before + added)}
        return item

    def _delete(self, arguments: Item) -> None:
        self.items.pop(_identity(arguments), None)


def _capacity(units: float) -> dict[str, Any]:
    return {"ConsumedCapacity": {"CapacityUnits": units}}


def _identity(arguments: Item) -> str:
    key = arguments.get("Key") or arguments["Item"]
    return " ".join(key[name]["S"] for name in KEYS[arguments["TableName"]])


def _holds(arguments: Item, item: Item | None, kind: str = "ConditionExpression") -> bool:
    if kind not in arguments:
        return True
    condition = arguments[kind]
    return any(
        all(_term(each, arguments, item) for each in way.split(" AND "))
        for way in condition.split(" OR ")
    )


def _term(term: str, arguments: Item, item: Item | None) -> bool:
    names, values = (
        arguments.get("ExpressionAttributeNames", {}),
        arguments.get("ExpressionAttributeValues", {}),
    )
    if term.startswith("NOT "):
        return not _term(term.removeprefix("NOT "), arguments, item)
    if match := re.fullmatch(r"attribute_not_exists\((\w+)\)", term):
        return item is None or match.group(1) not in item
    if match := re.fullmatch(r"begins_with\((#?\w+), (:\w+)\)", term):
        name, prefix = match.groups()
        return bool((item or {})[names.get(name, name)]["S"].startswith(values[prefix]["S"]))
    match = re.fullmatch(r"(#?\w+) (=|<|>|IN|BETWEEN) (.+)", term)
    assert match, f"the fake does not know the condition {term!r}"
    name, operator, operand = match.groups()
    stored = (item or {}).get(names.get(name, name))
    if operator == "BETWEEN":
        low, high = (values[each]["S"] for each in operand.split(" TO "))
        return stored is not None and low <= stored["S"] <= high
    if operator == ">":
        return stored is not None and stored["S"] > values[operand]["S"]
    if operator == "<":
        kind = next(iter(values[operand]))
        as_number: Callable[[str], Any] = int if kind == "N" else str
        return stored is not None and as_number(stored[kind]) < as_number(values[operand][kind])
    return stored is not None and stored in [
        values[each] for each in operand.strip("()").split(", ")
    ]


class FakeSSM:
    """Parameters by name; `fail` makes every call raise."""

    def __init__(self, **parameters: str):
        self.parameters, self.fail, self.calls = parameters, False, 0
        self.key_ids: list[str | None] = []

    def get_parameter(self, **arguments: Any) -> dict[str, Any]:
        self.calls += 1
        if self.fail:
            raise service_error("ThrottlingException", "GetParameter")
        return {"Parameter": {"Value": self.parameters[arguments["Name"]]}}

    def put_parameter(self, **arguments: Any) -> None:
        self.parameters[arguments["Name"]] = arguments["Value"]
        self.key_ids.append(arguments.get("KeyId"))


class FakeS3:
    """Object versions by key and version id; what a key's value is an exception is raised."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.history: dict[str, list[str]] = {}  # of a key: versions and delete markers, by time
        self.reads: list[str] = []
        self.before: Callable[[str, dict[str, Any]], None] = lambda operation, arguments: None

    def put(self, key: str, version: str, body: bytes, **head: Any) -> None:
        """A version of an object; `size` in place of a body that is not there."""
        size = head.pop("size", len(body))
        described = {"ContentLength": size, "ETag": '"etag"', "Metadata": {}, **head}
        self.objects[key, version] = {"head": {**described, "VersionId": version}, "body": body}
        self.mark(key, version)

    def mark(self, key: str, marker: str) -> None:
        """A delete marker, unless it is a version."""
        self.history.setdefault(key, []).append(marker)

    def remove(self, key: str, version: str) -> None:
        """Deletes a version or a delete marker for good."""
        self.history[key].remove(version)
        self.objects.pop((key, version), None)

    def head_object(self, **arguments: Any) -> dict[str, Any]:
        history = self.history.get(arguments["Key"], [])
        if "VersionId" not in arguments:
            arguments["VersionId"] = "".join(history[-1:])
        elif (arguments["Key"], arguments["VersionId"]) in self.objects:
            assert arguments["ChecksumMode"] == "ENABLED"
        elif arguments["VersionId"] in history:
            raise client_error("405", "HeadObject")
        return dict(self._find("HeadObject", "404", arguments)["head"])

    def delete_object(self, **arguments: Any) -> dict[str, Any]:
        self.before("DeleteObject", arguments)
        marker = f"m{len(self.history[arguments['Key']])}"
        self.mark(arguments["Key"], marker)
        return {"DeleteMarker": True, "VersionId": marker}

    def copy_object(self, **arguments: Any) -> dict[str, Any]:
        assert arguments.pop("TaggingDirective") == "REPLACE"
        found = self._find("CopyObject", "NoSuchVersion", arguments.pop("CopySource"))
        version = f"c{len(self.history[arguments['Key']])}"
        self.put(arguments["Key"], version, found["body"])
        return {"VersionId": version}

    def get_object(self, **arguments: Any) -> dict[str, Any]:
        found = self._find("GetObject", "NoSuchVersion", arguments)
        first, last = map(int, arguments["Range"].removeprefix("bytes=").split("-"))
        self.reads.append(arguments["Range"])
        if found["head"].get("StorageClass") == "GLACIER":
            raise client_error("InvalidObjectState", "GetObject")
        return {"Body": io.BytesIO(found["body"][first : last + 1])}

    def _find(self, operation: str, missing: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.before(operation, arguments)
        key = arguments["Key"], arguments.get("VersionId", "")
        if key not in self.objects:
            raise client_error(missing, operation)
        return self.objects[key]
