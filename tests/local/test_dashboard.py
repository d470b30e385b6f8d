"""What the dashboard shows and the alarms watch has data after ordinary work, or a reason."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from taplocal.access import call, machine_token, person_token, upload
from taplocal.differences import DIFFERENCES
from taplocal.session import Session
from tests.local.conftest import HANG_SECONDS, Call
from tests.local.test_file_pipeline import eventually

#: Namespace and name, and dimensions.
Metric = tuple[str, tuple[tuple[str, str], ...]]

#: Metrics that have data, as on AWS, only when something went wrong or somebody logged in.
EVENTS = {
    "AWS/ApplicationELB/HTTPCode_ELB_5XX_Count", "AWS/ApplicationELB/HTTPCode_Target_5XX_Count",
    "AWS/ApplicationELB/RejectedConnectionCount", "AWS/DynamoDB/ReadThrottleEvents",
    "AWS/DynamoDB/WriteThrottleEvents", "AWS/Lambda/AsyncEventsDropped",
    "AWS/Lambda/DestinationDeliveryFailures", "AWS/SNS/NumberOfNotificationsFailed", "tap-stack/FilesFailed", "tap-stack/FilesIgnored",
    "tap-stack/FilesMissing", "tap-stack/FilesRepeated", "tap-stack/RequestsFailed",
}  # fmt: skip


def metric(each: Mapping[str, Any]) -> Metric:
    """A metric as an alarm or a list has it."""
    named = sorted((x["Name"], x["Value"]) for x in each["Dimensions"])
    return f"{each['Namespace']}/{each['MetricName']}", tuple(named)


def shown(deployed: Session) -> Iterator[Metric]:
    """The metrics of the dashboards' widgets, but for AWS's charges."""
    client = deployed.cloud.client("cloudwatch")
    for each in client.list_dashboards()["DashboardEntries"]:
        body = client.get_dashboard(DashboardName=each["DashboardName"])["DashboardBody"]
        for widget in json.loads(body)["widgets"]:
            for line in widget["properties"].get("metrics", ()):
                namespace, name, *rest = (each for each in line if isinstance(each, str))
                if namespace != "AWS/Billing":
                    of = tuple(sorted(zip(rest[::2], rest[1::2], strict=True)))
                    yield f"{namespace}/{name}", of


def alarmed(deployed: Session) -> Iterator[Metric]:
    """The metrics of the stack's alarms."""
    topics = {deployed.outputs[f"{kind}_topic_arn"] for kind in ("alerts", "pages")}
    pages = deployed.cloud.client("cloudwatch").get_paginator("describe_alarms").paginate()
    for alarm in (each for page in pages for each in page["MetricAlarms"]):
        if topics & set(alarm["AlarmActions"]):
            measured = [
                x["MetricStat"]["Metric"] for x in alarm.get("Metrics", ()) if "MetricStat" in x
            ]
            yield from map(metric, measured or [alarm])


def work(deployed: Session, ann: Call) -> None:
    """Requests of each kind, an upload, pages of the web environment, a rotation, a snapshot."""
    path = ann("POST", "/items", "{}").headers["location"]
    ann("PUT", path, "{}")
    ann("PATCH", path, "{}", content_type="application/merge-patch+json")
    for each in (path, "/items", "/files", "/files/totals", "/health"):
        ann("GET", each)
    ann("DELETE", path)
    form, _ = upload(deployed, person_token(deployed, "ann@example.com"), "a", b"a", "text/plain")
    file = f"/files/{form.json()['id']}"
    eventually(lambda: ann("GET", file).status == 200)
    version = json.dumps({"version_id": ann("GET", file).json()["version_id"]})
    ann("GET", f"{file}/content")
    ann("DELETE", file)
    eventually(lambda: "deleted_at" in ann("GET", file).json())
    assert ann("POST", f"{file}/versions", version).status == 201
    token = machine_token(deployed, "files/report")
    assert call(deployed, "GET", "/files/report", token).status == 200
    for name in ("rotation", "snapshots", "files"):
        deployed.cloud.client("lambda").invoke(
            FunctionName=f"tap-stack-{name}-dev",
            Qualifier="live",
            InvocationType="Event",
            Payload=b"{}",
        )
    for _ in range(3):
        urllib.request.urlopen(deployed.outputs["web_url"]).close()


@pytest.fixture(scope="module")
def silent(deployed: Session, ann: Call) -> set[Metric]:
    """What is watched and has no data after all this."""
    work(deployed, ann)
    watched = {*shown(deployed), *alarmed(deployed)}
    pages = deployed.cloud.client("cloudwatch").get_paginator("list_metrics")
    known, deadline = EVENTS | reasons(), time.monotonic() + HANG_SECONDS
    while True:
        measured = {metric(each) for page in pages.paginate() for each in page["Metrics"]}
        found = watched - measured
        if {name for name, _ in found} <= known or time.monotonic() > deadline:
            return found
        time.sleep(1)


def reasons() -> set[str]:
    """The metrics that have no data because of a difference from AWS."""
    return {name for each in DIFFERENCES for name in each.silent.split()}


def test_what_is_watched_has_data_or_a_reason(silent: set[Metric]) -> None:
    assert sorted(each for each in silent if each[0] not in EVENTS | reasons()) == []


def test_what_waits_for_an_event_is_watched(deployed: Session) -> None:
    assert {name for name, _ in (*shown(deployed), *alarmed(deployed))} >= EVENTS


def test_what_has_a_reason_has_no_data(silent: set[Metric]) -> None:
    assert reasons() - {name for name, _ in silent} == set()
