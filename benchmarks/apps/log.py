"""The log line and metric of the frameworks that have none of their own: one print of JSON."""

from __future__ import annotations

import json

METRIC = {"Name": "ItemsCreated", "Unit": "Count"}
DIRECTIVE = {"Namespace": "tap-stack", "Dimensions": [["Environment"]], "Metrics": [METRIC]}


def log(status: int) -> None:
    """One line with one metric in embedded metric format."""
    line = {"level": "INFO", "message": "request", "status": status, "Environment": "dev"}
    emf = {"Timestamp": 0, "CloudWatchMetrics": [DIRECTIVE]}
    print(json.dumps({**line, "ItemsCreated": 1, "_aws": emf}))
