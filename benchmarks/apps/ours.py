"""tap-stack's own handler, from the bundle that Lambda gets, with a DynamoDB client that answers at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.apps.stub import STORED, Context

KIND = "v2"
os.environ.update(
    TABLE_NAME="items",
    PAGING_KEY="key",
    IDEMPOTENCY_SECONDS="86400",
    ENVIRONMENT="dev",
    METRICS_NAMESPACE="tap-stack",
)

index: dict[str, Any] = {"__name__": "index"}
exec(compile(Path(os.environ["BUNDLE"]).read_text(), "index.py", "exec"), index)  # noqa: S102

CONSUMED = {"ConsumedCapacity": {"CapacityUnits": 1.0}}


class Table:
    def get_item(self, **arguments: Any) -> dict[str, Any]:
        return {"Item": STORED, **CONSUMED} if arguments["Key"]["id"]["S"] == "tea" else CONSUMED

    def put_item(self, **arguments: Any) -> dict[str, Any]:
        return CONSUMED


index["_clients"]["dynamodb"] = Table()


def bare(event: dict[str, Any]) -> Any:
    """Without the log line and its metric; what remains is what the API cannot do without."""
    request = index["Request"](event)
    try:
        return index["dispatch"](request)
    except index["Problem"] as problem:
        return index["problem_response"](problem, request.id)


def full(event: dict[str, Any]) -> Any:
    return index["api"](event, Context())
