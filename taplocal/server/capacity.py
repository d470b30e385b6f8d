"""DynamoDB's capacity: what calls consume is measured, and what is provisioned bounds it.

MiniStack counts the units of a call when it is asked to, reads of an item as if each had 4 KB, and
refuses nothing. Here, as on AWS, the metrics have them by table and index, and a table or an index
with provisioned units lends what was unused in the last five minutes, then throttles.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ministack.core.responses import get_account_id, get_region
from ministack.services import dynamodb

from taplocal.server.timing import MINUTE_SECONDS

READS = {"BatchGetItem", "GetItem", "Query", "Scan", "TransactGetItems"}
WRITES = {"BatchWriteItem", "DeleteItem", "PutItem", "TransactWriteItems", "UpdateItem"}
BURST_SECONDS = 300
PACE = 60 / MINUTE_SECONDS  # of units, as of the metrics that count them
MESSAGE = (
    "The level of configured provisioned throughput for the table was exceeded. "
    "Consider increasing your provisioning level with the UpdateTable API."
)

#: Counts values of a namespace, by dimensions: `metrics.count`.
Count = Callable[..., None]
#: A table, or the index of one.
Place = tuple[str, str]


class Bucket:
    """Units that can be consumed now, full at first: of a table, an index, a route of an API."""

    def __init__(self, most: float):
        self.units, self.at = most, time.monotonic()

    def fill(self, rate: float, most: float) -> float:
        """What it has, after its rate a second since the last time filled it."""
        now = time.monotonic()
        self.units = min(self.units + rate * (now - self.at), most)
        self.at = now
        return self.units


class Capacity:
    """Stands before DynamoDB's requests."""

    def __init__(self, handle: Callable[..., Any], count: Count):
        self._handle, self._count = handle, count
        self._buckets: dict[tuple[str, ...], Bucket] = {}

    async def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, query: Any
    ) -> Any:
        """Replaces MiniStack's handle_request."""
        action = headers.get("x-amz-target", "").rpartition(".")[2]
        kind = "Read" if action in READS else "Write"
        asked = _parsed(body) if action in READS | WRITES else None
        wanted = (asked or {}).get("ReturnConsumedCapacity", "NONE")
        if asked is None or wanted not in ("NONE", "TOTAL", "INDEXES"):
            return await self._handle(method, path, headers, body, query)
        if place := next(self._exhausted(asked, kind), None):
            self._count("AWS/DynamoDB", dimensions(place), **{f"{kind}ThrottleEvents": 1})
            return refusal(action, len(asked.get("TransactItems", ())))
        asked["ReturnConsumedCapacity"] = "INDEXES"
        status, made, content = await self._handle(
            method, path, headers, json.dumps(asked).encode(), query
        )
        response = _parsed(content) if status == 200 else None
        if response is None:
            return status, made, content
        consumed = response.pop("ConsumedCapacity", [])
        each_table = consumed if isinstance(consumed, list) else [consumed]
        for one in each_table:
            _read_by_size(one, action, response)
            self._take(one, kind)
        if wanted == "TOTAL":
            each_table = [{k: one[k] for k in ("TableName", "CapacityUnits")} for one in each_table]
        if wanted != "NONE":
            is_list = isinstance(consumed, list)
            response["ConsumedCapacity"] = each_table if is_list else each_table[0]
        return _answer(status, made, response)

    def _exhausted(self, asked: Mapping[str, Any], kind: str) -> Iterator[Place]:
        """The places that a call needs and that have no units left."""
        for name in tables_of(asked):
            table = dynamodb._tables.get(name) or {}
            indexes = [each["IndexName"] for each in table.get("GlobalSecondaryIndexes") or ()]
            if kind == "Read":
                indexes = [each for each in indexes if each == asked.get("IndexName")]
            for index in [*indexes, *([""] if kind == "Write" or not indexes else [])]:
                rate = rate_of(table, index, kind)
                most = rate * BURST_SECONDS
                if rate and self._bucket((name, index), kind, rate).fill(rate * PACE, most) <= 0:
                    yield name, index

    def _take(self, consumed: Mapping[str, Any], kind: str) -> None:
        """Counts the units of a table and its indexes, and takes them."""
        name, indexes = consumed["TableName"], consumed.get("GlobalSecondaryIndexes", {})
        units = {index: each["CapacityUnits"] for index, each in indexes.items()}
        units[""] = consumed["CapacityUnits"] - sum(units.values())
        for index, amount in units.items():
            if not amount:
                continue
            metric = {f"Consumed{kind}CapacityUnits": amount}
            self._count("AWS/DynamoDB", dimensions((name, index)), **metric)
            if rate := rate_of(dynamodb._tables.get(name) or {}, index, kind):
                self._bucket((name, index), kind, rate).units -= amount

    def _bucket(self, place: Place, kind: str, rate: float) -> Bucket:
        key = (get_account_id(), get_region(), *place, kind)
        return self._buckets.setdefault(key, Bucket(rate * BURST_SECONDS))


def rate_of(table: Mapping[str, Any], index: str, kind: str) -> float:
    """Units per second of a table or its index; 0 on demand, where nothing is bounded."""
    if (table.get("BillingModeSummary") or {}).get("BillingMode") == "PAY_PER_REQUEST":
        return 0.0  # where an index still has the units that it had before
    indexes = table.get("GlobalSecondaryIndexes") or ()
    found = next((each for each in indexes if each["IndexName"] == index), table)
    return float((found.get("ProvisionedThroughput") or {}).get(f"{kind}CapacityUnits", 0))


def tables_of(asked: Mapping[str, Any]) -> list[str]:
    """The tables that a call names, each once."""
    parts = [part for each in asked.get("TransactItems", ()) for part in each.values()]
    names = [each.get("TableName") for each in (asked, *parts)]
    return list(dict.fromkeys([*filter(None, names), *asked.get("RequestItems", ())]))


def dimensions(place: Place) -> dict[str, str]:
    """Those of the metrics of a table or an index."""
    table, index = place
    return {"TableName": table, **({"GlobalSecondaryIndexName": index} if index else {})}


def refusal(action: str, parts: int) -> Any:
    """What DynamoDB responds with beyond what is provisioned."""
    code, more = "ProvisionedThroughputExceededException", {}
    if action.startswith("Transact"):
        code, reason = "TransactionCanceledException", "ProvisionedThroughputExceeded"
        more = {"CancellationReasons": [{"Code": reason, "Message": MESSAGE}] * parts}
    error = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": MESSAGE, **more}
    return _answer(400, {"Content-Type": "application/x-amz-json-1.0"}, error)


def _read_by_size(consumed: dict[str, Any], action: str, response: Mapping[str, Any]) -> None:
    """Counts what one read returned by its size: half a unit, or one if consistent, for 4 KB."""
    if action not in ("GetItem", "Query", "Scan") or consumed["CapacityUnits"] == 0:
        return
    items = response.get("Items", [response.get("Item") or {}])
    size = sum(dynamodb._item_size_bytes(each) for each in items)
    more = max(1, -(-size // 4096))
    consumed["CapacityUnits"] *= more
    for each in ({"": consumed.get("Table", {})}, consumed.get("GlobalSecondaryIndexes", {})):
        for part in each.values():
            part["CapacityUnits"] = part.get("CapacityUnits", 0) * more


def _answer(status: int, headers: dict[str, str], content: Any) -> Any:
    body = json.dumps(content, ensure_ascii=False).encode()
    return status, {**headers, "x-amz-crc32": str(zlib.crc32(body))}, body


def _parsed(body: bytes | str) -> dict[str, Any] | None:
    """The JSON object in a body, if it is one."""
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def install(count: Count) -> None:
    """Replaces MiniStack's function."""
    dynamodb.handle_request = Capacity(dynamodb.handle_request, count).handle
