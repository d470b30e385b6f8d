"""Monitoring as it is registered: nothing fails silently, each alarm has its runbook."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.stack.conftest import ENVIRONMENTS, REGION, ROOT, Graph, graph_of, graph_of_program

#: Namespace -> resource type whose names or ids its dimensions carry, and the dimension.
MEASURED = {
    "AWS/AutoScaling": ("aws:autoscaling/group:Group", "AutoScalingGroupName", "name"),
    "AWS/EC2": ("aws:autoscaling/group:Group", "AutoScalingGroupName", "name"),
    "CWAgent": ("aws:autoscaling/group:Group", "AutoScalingGroupName", "name"),
    "AWS/RDS": ("aws:rds/instance:Instance", "DBInstanceIdentifier", "identifier"),
    "AWS/Lambda": ("Function", "FunctionName", "name"),
    "AWS/SQS": ("Queue", "QueueName", "name"),
    "AWS/DynamoDB": ("Table", "TableName", "name"),
    "AWS/EventBridge/Pipes": ("Pipe", "PipeName", "name"),
    "AWS/Scheduler": ("ScheduleGroup", "ScheduleGroup", "name"),
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
    "AWS/EventBridge/Pipes": {"ExecutionFailed"},
    "AWS/Scheduler": {"InvocationDroppedCount"},
    "AWS/NATGateway": {"ErrorPortAllocation", "PacketsDropCount"},
    "AWS/RDS": {
        "CPUUtilization",
        "DatabaseConnections",
        "FreeStorageSpace",
        "FreeableMemory",
        "WriteLatency",
    },
    "CWAgent": {"mem_used_percent", "disk_used_percent"},
    "tap-stack": {
        "FilesInfected",
        "FilesUnscanned",
        "SnapshotsTaken",
        *(f"BastionLogins-{env}" for env in ENVIRONMENTS),
    },
}


#: What only some functions and tables have: asynchronous events, provisioned capacity.
MORE = {
    "AWS/Lambda": {"AsyncEventAge", "AsyncEventsDropped", "DestinationDeliveryFailures"},
    "AWS/DynamoDB": {"ConsumedReadCapacityUnits", "ConsumedWriteCapacityUnits"},
}


#: What the account has, without dimensions, and a function with provisioned concurrency.
CONCURRENCY = {"ClaimedAccountConcurrency", "ProvisionedConcurrencySpilloverInvocations"}


def with_all(env: str) -> Graph:
    """An environment with what is off in all of them by default."""
    more = ("files_analytics", "files_events", "files_malware_protection")
    return graph_of(env, **dict.fromkeys(more, "true"))


def test_every_alarm_has_actions_real_dimensions_and_a_runbook(env: str) -> None:
    graph = with_all(env)
    runbook = (ROOT / "docs" / "operations.md").read_text()
    for each in graph.of("MetricAlarm"):
        alarm = each.inputs
        actions = [graph.outputs["alerts_topic_arn"]]
        assert alarm["alarmActions"] == alarm["okActions"] == actions
        silence = alarm["treatMissingData"] == "missing"
        assert alarm["insufficientDataActions"] == (actions if silence else [])
        known = METRICS[alarm["namespace"]] | MORE.get(alarm["namespace"], set()) | CONCURRENCY
        assert alarm["metricName"] in known, alarm
        assert ("statistic" in alarm) != ("extendedStatistic" in alarm)
        silent = "missing" if alarm["metricName"] in HEARTBEATS else "notBreaching"
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
    if alarm["metricName"] == "ClaimedAccountConcurrency":
        assert not alarm.get("dimensions")
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


def test_nothing_is_red_on_the_first_day(graph: Graph) -> None:
    """Neither because a metric has no data yet, nor because instances are still starting."""
    grace = max(each.inputs["healthCheckGracePeriod"] for each in graph.of("Group"))
    for alarm in (each.inputs for each in graph.of("MetricAlarm")):
        assert alarm["treatMissingData"] != "breaching"
        if alarm["metricName"].endswith(("HostCount", "InServiceInstances")):
            assert alarm["period"] * alarm["datapointsToAlarm"] > grace, alarm["name"]


def test_one_full_machine_is_enough_for_an_alarm(graph: Graph) -> None:
    used = [x.inputs for x in graph.of("MetricAlarm") if x.inputs["namespace"] == "CWAgent"]
    assert {each["statistic"] for each in used} == {"Maximum"}
    assert len(used) == 2


def watched(graph: Graph) -> set[tuple[str, ...]]:
    """Namespace, metric and the dimensions' values in the order of their names, of every alarm."""
    return {
        (each["namespace"], each["metricName"], *each.get("dimensions", {}).values())
        for each in (alarm.inputs for alarm in graph.of("MetricAlarm"))
    }


def test_every_function_and_queue_is_watched(graph: Graph) -> None:
    for function in graph.of("Function"):
        name = function.inputs["name"]
        held_back = function.name == "files-records-function"
        for metric in METRICS["AWS/Lambda"] - ({"Throttles"} if held_back else set()):
            through = () if metric == "Throttles" else (f"{name}:live",)
            assert ("AWS/Lambda", metric, name, *through) in watched(graph)
    for each in graph.of("FunctionEventInvokeConfig"):
        for metric in MORE["AWS/Lambda"]:
            assert ("AWS/Lambda", metric, each.inputs["functionName"]) in watched(graph)
    for queue in graph.of("Queue"):
        name = queue.inputs["name"]
        assert ("AWS/SQS", "ApproximateNumberOfMessagesVisible", name) in watched(graph)


def test_the_dashboard_shows_metrics_with_their_dimensions(graph: Graph, env: str) -> None:
    dashboard = graph.one("Dashboard").inputs
    assert dashboard["dashboardName"] == f"tap-stack-{env}"
    widgets = json.loads(dashboard["dashboardBody"])["widgets"]
    titles = [each["properties"]["title"] for each in widgets]
    assert {"API requests", "API latency", "Operations", "Items table"} <= set(titles)
    assert {"Files", "Files table", f"Function tap-stack-files-{env}"} <= set(titles)
    for widget in widgets:
        assert widget["properties"]["region"] == REGION
        shown = [json.dumps(metric) for metric in widget["properties"]["metrics"]]
        assert len(shown) == len(set(shown)), "a metric is drawn once"
        for metric in widget["properties"]["metrics"]:
            assert len(metric) >= 5
            assert len(metric) % 2 == 1  # namespace, name, pairs of dimensions, options


def test_the_runbook_has_no_section_for_an_alarm_that_is_gone() -> None:
    sections = re.findall(
        r"^## ([a-z0-9-]+)$", Path(ROOT / "docs" / "operations.md").read_text(), re.MULTILINE
    )
    anchors = {
        each.inputs["alarmDescription"].rpartition("#")[2]
        for graph in (*map(with_all, ENVIRONMENTS), graph_of("dev", files_concurrency="0"))
        for each in graph.of("MetricAlarm")
    }
    assert set(sections) == anchors


PROGRAM = """
from tap_stack import Alarm, Component, Graph, Monitoring, TapStackArgs

class Plain(Component):
    pass

class Watched(Component):
    def alarms(self):
        return [
            Alarm("queue", "AWS/SQS/ApproximateAgeOfOldestMessage", {"QueueName": "q"}, above=60)
        ]

    def graphs(self):
        return [Graph("Queue", [("AWS/SQS", "Age", {"QueueName": "q"}, "Maximum")])]

args = TapStackArgs()
plain, watched = (each(each.__name__.lower(), args, None, None, "own") for each in (Plain, Watched))
assert (plain.alarms(), plain.graphs()) == ([], [])
Monitoring("nothing", args, components=[plain], topic_arn="arn:topic")
Monitoring("something", args, components=(each for each in (plain, watched)), topic_arn="arn:topic")
"""


def test_any_component_can_be_monitored_and_has_nothing_to_show_by_default(tmp_path: Path) -> None:
    graph = graph_of_program(tmp_path, PROGRAM)
    (alarm,) = graph.of("MetricAlarm")
    assert alarm.name == "something-queue"
    assert alarm.inputs["alarmActions"] == ["arn:topic"]
    titles = {
        each.name: [
            widget["properties"]["title"]
            for widget in json.loads(each.inputs["dashboardBody"])["widgets"]
        ]
        for each in graph.of("Dashboard")
    }
    assert titles == {"nothing-dashboard": [], "something-dashboard": ["Queue"]}


def first_deleted(graph: Graph) -> set[str]:
    """What `pulumi destroy` deletes first: its engine takes resources away by layers, first what
    depends on nothing that is left, and deletes the layers from the last one on."""
    left, layer = {each.urn: each for each in graph.resources}, set[str]()
    while left:
        layer = {
            urn for urn, each in left.items() if not {*each.depends_on, each.parent} & left.keys()
        }
        assert layer, "a circle"
        names = {left.pop(urn).name for urn in layer}
    return names


def test_prod_is_not_deleted_as_long_as_its_dashboard_is_protected() -> None:
    for config in ({}, {"systems": "api"}, {"systems": "files"}, {"systems": "web"}):
        graph = graph_of("prod", **config)
        assert first_deleted(graph) == {"monitoring-dashboard"}
        assert graph.one("Dashboard").protect
    assert not graph_of("dev").one("Dashboard").protect
