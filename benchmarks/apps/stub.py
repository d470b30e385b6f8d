"""The table that all of them use: it knows one item and takes every new one."""

from __future__ import annotations

from typing import Any

ITEM = {"id": "tea", "name": "Earl Grey", "price": 4}
#: The same as DynamoDB holds it for our function.
STORED = {
    "id": {"S": "tea"},
    "owner": {"S": "ann"},
    "version": {"N": "1"},
    "revision": {"S": "r"},
    "created_at": {"S": "2026-01-01T00:00:00.000000Z"},
    "updated_at": {"S": "2026-01-01T00:00:00.000000Z"},
    "content": {"M": {"name": {"S": "Earl Grey"}, "price": {"N": "4"}}},
}


class Context:
    """Lambda's, of a function with 15 s."""

    aws_request_id = "r"

    def get_remaining_time_in_millis(self) -> int:
        return 15_000


def get(item_id: str) -> dict[str, Any] | None:
    return dict(ITEM) if item_id == "tea" else None


def put(item: dict[str, Any]) -> dict[str, Any]:
    return item
