"""Follows one request or file through everything that was logged of it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taplocal import logs
from taplocal.architecture import metrics_of
from taplocal.emulator import TRACES
from taplocal.errors import TapLocalError
from taplocal.session import Session
from taplocal.sources import Sources

Json = dict[str, Any]
IDS = ("request_id", "requestId", "upload_request_id", "version_id", "key", "id", "trace_id")


def events(session: Session, since: float = 0, text: str = "") -> list[Json]:
    """What API and functions wrote as JSON since a time (epoch, s); with `text`, what has it."""
    found = []
    for event in logs.read(session, ("requests", "functions"), int(since * 1000), text):
        if isinstance(message := logs.maybe_json(event["message"]), dict):
            at = event["timestamp"] / 1000
            found.append({"time": at, "group": event["log_group"], "message": message})
    return found


def follow(session: Session, id_: str) -> Json:
    """What is known of a request by its id, or of a file by its id, key or version.

    `lines` are what logs have, `calls` the calls of AWS's services that were traced, with
    milliseconds; `metrics` are those counted, `alarms` those that they can raise. TapLocalError if
    nothing has this id.
    """
    if record := _file(session, id_):
        asked = record["metadata"].get("request-id", {}).get("S")  # the request of its upload
        ids = {record["version_id"], record["key"], asked}
        lines = [x for x in events(session) if ids & set(map(str, x["message"].values()))]
    else:
        lines = [each for each in events(session, text=id_) if _has(each["message"], id_)]
    if not lines and not record:
        raise TapLocalError(
            f"nothing has the id {json.dumps(id_)}: give the request id of a response "
            "(apigw-requestid), the request_id of a log line, or a file's id, key or version"
        )
    if any("stack" in each["message"] for each in lines):
        with contextlib.suppress(OSError, SyntaxError, ValueError):  # the program is being changed
            sources = Sources(Path(session.state.program))
            for each in lines:
                logs.locate(each["message"], sources)
    traces = {each["message"].get("trace_id") for each in lines} - {None, ""}
    calls = list(_calls(session, traces))
    metrics = sorted({name for each in lines for name in _metrics(each["message"])})
    return {
        "id": id_,
        "record": record,
        "lines": [{**each, "message": _told(each["message"])} for each in lines],
        "calls": calls,
        "metrics": metrics,
        "alarms": sorted({x for name in metrics for x in alarms_of(session, name)}),
    }


def _has(message: Json, id_: str) -> bool:
    return any(str(message.get(name)) == id_ for name in IDS)


def _told(message: Json) -> Json:
    """A line without what only CloudWatch reads."""
    return {name: value for name, value in message.items() if name != "_aws"}


def _metrics(message: Json) -> Iterator[str]:
    for each in message.get("_aws", {}).get("CloudWatchMetrics", ()):
        yield from (metric["Name"] for metric in each["Metrics"])


def _file(session: Session, id_: str) -> Json | None:
    """The newest record of a file by its id, if there is one."""
    table = session.outputs.get("files_table_name")
    if not table or not re.fullmatch("[0-9a-f]{40}", id_):
        return None
    asked = session.cloud.client("dynamodb").query(
        TableName=table,
        KeyConditionExpression="id = :id",
        ExpressionAttributeValues={":id": {"S": id_}},
    )
    records = [{k: next(iter(v.values())) for k, v in x.items()} for x in asked["Items"]]
    return next((each for each in records if each.get("record") == "newest"), None)


def _calls(session: Session, traces: set[str]) -> Iterator[Json]:
    """The traced calls, in the order of their time."""
    path = session.folder / TRACES
    found = []
    for line in path.read_text().splitlines() if traces and path.exists() else ():
        each = logs.maybe_json(line)
        if isinstance(each, dict) and each.get("trace_id") in traces:
            found.append(each)
    for each in sorted(found, key=lambda x: float(x["start_time"])):
        error: Json = next(iter(each.get("cause", {}).get("exceptions", ())), {})
        yield {
            "time": each["start_time"],
            "milliseconds": round(1000 * (each["end_time"] - each["start_time"]), 2),
            "what": f"{each['name']} {each['aws']['operation']}",
            "on": ", ".join(each["aws"].get("resource_names", ())),
            "status": each.get("http", {}).get("response", {}).get("status", ""),
            "error": error.get("type", ""),
        }


def alarms_of(session: Session, metric: str) -> list[str]:
    """The alarms on a metric of this name."""
    return sorted(
        each.inputs["name"]
        for each in session.state.resources.values()
        if each.type.endswith(":MetricAlarm")
        and metric in {x["metricName"] for x in metrics_of(each.inputs)}
    )
