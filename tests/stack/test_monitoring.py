"""Encryption, alerts and monitoring as they are registered: nothing fails silently."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tap_stack
from tests.stack.conftest import ACCOUNT, ENVIRONMENTS, REGION, ROOT, Graph, graph_of, statements

#: Namespace -> resource type whose names or ids its dimensions carry, and the dimension.
MEASURED = {
    "AWS/AutoScaling": ("aws:autoscaling/group:Group", "AutoScalingGroupName", "name"),
    "AWS/EC2": ("aws:autoscaling/group:Group", "AutoScalingGroupName", "name"),
    "CWAgent": ("aws:autoscaling/group:Group", "AutoScalingGroupName", "name"),
    "AWS/RDS": ("aws:rds/instance:Instance", "DBInstanceIdentifier", "identifier"),
    "AWS/Lambda": ("Function", "FunctionName", "name"),
    "AWS/SQS": ("Queue", "QueueName", "name"),
    "AWS/DynamoDB": ("Table", "TableName", "name"),
}
HEARTBEATS = {"SnapshotsTaken", "HealthyHostCount"}  # whose silence is the alarm
METRICS = {
    "AWS/ApiGateway": {"5xx", "Latency"},
    "AWS/Lambda": {"Errors", "Throttles", "Duration"},
    "AWS/SQS": {"ApproximateNumberOfMessagesVisible"},
    "AWS/DynamoDB": {"ReadThrottleEvents", "WriteThrottleEvents"},
    "AWS/ApplicationELB": {
        "HTTPCode_ELB_5XX_Count",
        "HTTPCode_Target_5XX_Count",
        "HealthyHostCount",
        "RejectedConnectionCount",
        "TargetResponseTime",
        "UnHealthyHostCount",
    },
    "AWS/AutoScaling": {"GroupInServiceInstances"},
    "AWS/EC2": {"CPUUtilization"},
    "AWS/NATGateway": {"ErrorPortAllocation", "PacketsDropCount"},
    "AWS/RDS": {
        "CPUUtilization",
        "DatabaseConnections",
        "FreeStorageSpace",
        "FreeableMemory",
        "WriteLatency",
    },
    "CWAgent": {"mem_used_percent", "disk_used_percent"},
    "tap-stack": {"SnapshotsTaken", *(f"BastionLogins-{env}" for env in ENVIRONMENTS)},
}
#: What only some functions and tables have: asynchronous events, provisioned capacity.
MORE = {
    "AWS/Lambda": {"AsyncEventAge", "DestinationDeliveryFailures"},
    "AWS/DynamoDB": {"ConsumedReadCapacityUnits", "ConsumedWriteCapacityUnits"},
}


def test_every_alarm_has_actions_real_dimensions_and_a_runbook(graph: Graph) -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text()
    for each in graph.of("MetricAlarm"):
        alarm = each.inputs
        # A release's own alarms are looked at by the release, which says what they found.
        told = [] if "-release-" in each.name else [graph.outputs["alerts_topic_arn"]]
        assert alarm["alarmActions"] == alarm["okActions"] == told
        known = METRICS[alarm["namespace"]] | MORE.get(alarm["namespace"], set())
        assert alarm["metricName"] in known, alarm
        assert ("statistic" in alarm) != ("extendedStatistic" in alarm)
        silent = "breaching" if alarm["metricName"] in HEARTBEATS else "notBreaching"
        assert alarm["treatMissingData"] == silent
        assert alarm["datapointsToAlarm"] <= alarm["evaluationPeriods"]
        check_dimensions(graph, alarm)
        (anchor,) = re.findall(r"docs/operations\.md#([a-z0-9-]+)$", alarm["alarmDescription"])
        assert f"\n## {anchor}\n" in runbook


def check_dimensions(graph: Graph, alarm: dict[str, Any]) -> None:
    fixed = {
        "AWS/ApiGateway": {"ApiId": "api-http-id", "Stage": "$default"},
        "AWS/ApplicationELB": {
            "LoadBalancer": "app/web-balancer/1",
            "TargetGroup": "app/web-targets/1",
        },
        "tap-stack": {"Environment": graph.outputs["dashboard_name"].rpartition("-")[2]},
    }
    if alarm["namespace"] in fixed:
        assert alarm.get("dimensions", {}).items() <= fixed[alarm["namespace"]].items()
        return
    if alarm["namespace"] == "AWS/NATGateway":
        gateways = {f"{each.name}-id" for each in graph.of("NatGateway")}
        assert alarm["dimensions"]["NatGatewayId"] in gateways
        return
    kind, dimension, field = MEASURED[alarm["namespace"]]
    assert alarm["dimensions"][dimension] in {each.inputs[field] for each in graph.of(kind)}
    if index := alarm["dimensions"].get("GlobalSecondaryIndexName"):
        (indexes,) = (
            each.inputs["globalSecondaryIndexes"]
            for each in graph.of("Table")
            if each.inputs["name"] == alarm["dimensions"]["TableName"]
        )
        assert index in {each["name"] for each in indexes}


def watched(graph: Graph) -> set[tuple[str, ...]]:
    """Namespace, metric and the dimensions' values in the order of their names, of every alarm."""
    return {
        (each["namespace"], each["metricName"], *each.get("dimensions", {}).values())
        for each in (alarm.inputs for alarm in graph.of("MetricAlarm"))
    }


def test_every_function_and_queue_is_watched(graph: Graph, env: str) -> None:
    for function in graph.of("Function"):
        name = function.inputs["name"]
        held_back = function.name == "files-records-function" and env != "dev"
        for metric in METRICS["AWS/Lambda"] - ({"Throttles"} if held_back else set()):
            through = () if metric == "Throttles" else (f"{name}:live",)
            assert ("AWS/Lambda", metric, name, *through) in watched(graph)
    for each in graph.of("FunctionEventInvokeConfig"):
        for metric in MORE["AWS/Lambda"]:
            assert ("AWS/Lambda", metric, each.inputs["functionName"]) in watched(graph)
    for queue in graph.of("Queue"):
        name = queue.inputs["name"]
        assert ("AWS/SQS", "ApproximateNumberOfMessagesVisible", name) in watched(graph)


def test_every_table_and_index_is_watched(graph: Graph) -> None:
    for table in (each.inputs for each in graph.of("Table")):
        for metric in METRICS["AWS/DynamoDB"]:
            assert ("AWS/DynamoDB", metric, table["name"]) in watched(graph)
            for index in table["globalSecondaryIndexes"]:
                assert ("AWS/DynamoDB", metric, index["name"], table["name"]) in watched(graph)


def test_the_files_tables_use_alarms_at_80_percent_of_its_capacity(graph: Graph) -> None:
    thresholds = {
        each.inputs["metricName"]: each.inputs["threshold"]
        for each in graph.of("MetricAlarm")
        if each.inputs["metricName"].startswith("Consumed")
    }
    assert thresholds == {"ConsumedReadCapacityUnits": 4_800, "ConsumedWriteCapacityUnits": 4_800}
    half = graph_of("dev", files_table_capacity="50")
    assert half.one("MetricAlarm", "monitoring-files-write-capacity").inputs["threshold"] == 2_400


def test_the_dashboard_shows_metrics_with_their_dimensions(graph: Graph, env: str) -> None:
    dashboard = graph.one("Dashboard").inputs
    assert dashboard["dashboardName"] == f"tap-stack-{env}"
    widgets = json.loads(dashboard["dashboardBody"])["widgets"]
    titles = [each["properties"]["title"] for each in widgets]
    assert {"API requests", "API latency", "Operations", "Items table"} <= set(titles)
    assert {"Files", "Files table", f"Function tap-stack-files-{env}"} <= set(titles)
    for widget in widgets:
        assert widget["properties"]["region"] == REGION
        for metric in widget["properties"]["metrics"]:
            assert len(metric) >= 5
            assert len(metric) % 2 == 1  # namespace, name, pairs of dimensions, options


def test_the_topic_is_encrypted_so_that_cloudwatch_can_publish(graph: Graph) -> None:
    topic = statements(graph.one("TopicPolicy").inputs["policy"])
    publishers = {each["Principal"]["Service"] for each in topic if each["Effect"] == "Allow"}
    assert publishers == set(tap_stack.PUBLISHERS)
    key = [
        each
        for each in statements(graph.one("Key").inputs["policy"])
        if "Service" in each["Principal"]
    ]
    users = {each["Principal"]["Service"]: each for each in key}
    for service in publishers:
        assert set(users[service]["Action"]) == {"kms:Decrypt", "kms:GenerateDataKey"}
        assert users[service]["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
    assert f"logs.{REGION}.amazonaws.com" in users


def test_topics_queues_and_buckets_refuse_whoever_comes_without_tls(graph: Graph) -> None:
    for each in [x for kind in ("Topic", "Queue", "Bucket") for x in graph.of(f"{kind}Policy")]:
        denied = [
            statement
            for statement in statements(each.inputs["policy"])
            if statement["Effect"] == "Deny"
        ]
        assert [statement["Condition"] for statement in denied] == [
            {"Bool": {"aws:SecureTransport": "false"}}
        ]


def test_the_key_rotates_and_can_still_be_managed(graph: Graph, env: str) -> None:
    key = graph.one("Key").inputs
    assert key["enableKeyRotation"] is True
    assert key["deletionWindowInDays"] == (30 if env == "prod" else 7)
    arn = f"arn:aws:iam::{ACCOUNT}:root"
    root = next(x for x in statements(key["policy"]) if x["Principal"].get("AWS") == arn)
    assert {"kms:PutKeyPolicy", "kms:ScheduleKeyDeletion", "kms:Decrypt", "kms:CreateGrant"} <= set(
        root["Action"]
    )


def test_the_budget_warns_the_topic(graph: Graph) -> None:
    budget = graph.one("Budget").inputs
    kinds = {each["notificationType"]: each for each in budget["notifications"]}
    assert {kind: each["threshold"] for kind, each in kinds.items()} == {
        "ACTUAL": 80,
        "FORECASTED": 100,
    }
    for each in kinds.values():
        assert each["subscriberSnsTopicArns"] == [graph.outputs["alerts_topic_arn"]]


def test_each_address_is_subscribed() -> None:
    graph = graph_of("dev", alarm_emails='["ann@example.com", "bob@example.com"]')
    assert sorted(each.inputs["endpoint"] for each in graph.of("TopicSubscription")) == [
        "ann@example.com",
        "bob@example.com",
    ]


def test_the_runbook_has_no_section_for_an_alarm_that_is_gone() -> None:
    sections = re.findall(
        r"^## ([a-z0-9-]+)$", Path(ROOT / "docs" / "operations.md").read_text(), re.MULTILINE
    )
    anchors = {
        each.inputs["alarmDescription"].rpartition("#")[2]
        for env in ENVIRONMENTS
        for each in graph_of(env).of("MetricAlarm")
    }
    assert set(sections) == anchors
