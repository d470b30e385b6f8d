"""The table that all of them use: it knows one item and takes every new one."""

from __future__ import annotations

from typing import Any

ITEM = {"id": "tea", "name": "Earl Grey", "price": 4}


def get(item_id: str) -> dict[str, Any] | None:
    return dict(ITEM) if item_id == "tea" else None


def put(item: dict[str, Any]) -> dict[str, Any]:
    return item
