"""Monitoring as it is registered: nothing fails silently, each alarm has its runbook."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import tap_stack
from benchmarks import alarms
from taplocal.architecture import metrics_of
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
    "AWS/SNS": ("aws:sns/topic:Topic", "TopicName", "name"),
}


HEARTBEATS = {"SnapshotsTaken", "HealthyHostCount", "WalksPassed"}  # whose silence is the alarm


METRICS = {
    "AWS/ApiGateway": {"5xx", "Count", "Latency"},
    "AWS/CertificateManager": {"DaysToExpiry"},
    "AWS/SNS": {"NumberOfNotificationsFailed"},
    "AWS/Lambda": {"Errors", "Throttles", "Duration"},
    "AWS/SQS": {"ApproximateNumberOfMessagesVisible"},
    "AWS/DynamoDB": {"ReadThrottleEvents", "WriteThrottleEvents"},
    "AWS/ApplicationELB": {
        "HTTPCode_ELB_5XX_Count",
        "HTTPCode_Target_5XX_Count",
        "HealthyHostCount",
        "RejectedConnectionCount",
        "RequestCount",
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
        "EBSByteBalance%",
        "EBSIOBalance%",
        "FreeStorageSpace",
        "FreeableMemory",
        "MaximumUsedTransactionIDs",
        "ReadLatency",
        "WriteLatency",
    },
    "CWAgent": {"mem_used_percent", "disk_used_percent"},
    "tap-stack": {
        "FilesInfected",
        "FilesUnscanned",
        "Releasing",
        "SnapshotsTaken",
        "WalksPassed",
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
    named = {"api_domain_name": "api.acme.io", "domain_name": "app.acme.io"}
    return graph_of(env, **dict.fromkeys(more, "true"), **named)


#: Alarms that wake somebody up, and what is part of another alarm.
PAGES = r"monitoring-((api|web)-(fast-)?burn|alerts-undelivered|synthetics)"
PARTS = r"monitoring-((api|web)-(availability|latency)-(fast-burn|burn|slow-burn)-(long|short)|api-release)"


def told(graph: Graph, name: str) -> list[str]:
    """Whom an alarm of this logical name notifies."""
    if re.fullmatch(PARTS, name):
        return []
    kind = "pages" if re.fullmatch(PAGES, name) else "alerts"
    return [graph.outputs[f"{kind}_topic_arn"]]


def test_every_alarm_has_actions_real_dimensions_and_a_runbook(env: str) -> None:
    graph = with_all(env)
    for each in graph.of("MetricAlarm"):
        alarm, actions = each.inputs, told(graph, each.name)
        assert alarm["alarmActions"] == alarm["okActions"] == actions, each.name
        silence = alarm["treatMissingData"] == "missing"
        assert alarm["insufficientDataActions"] == (actions if silence else [])
        silent = "missing" if alarm.get("metricName") in HEARTBEATS else "notBreaching"
        assert alarm["treatMissingData"] == silent
        assert alarm["datapointsToAlarm"] <= alarm["evaluationPeriods"]
        for metric in metrics_of(alarm):
            more = MORE.get(metric["namespace"], set()) | CONCURRENCY
            assert metric["metricName"] in METRICS[metric["namespace"]] | more, alarm
            check_dimensions(graph, metric)
        assert_runbook(alarm["alarmDescription"])


def assert_runbook(description: str) -> None:
    (anchor,) = re.findall(r"docs/operations\.md#([a-z0-9-]+)$", description)
    assert f"\n## {anchor}\n" in (ROOT / "docs" / "operations.md").read_text()


def test_an_alarm_is_on_a_metric_or_on_an_expression(env: str) -> None:
    for alarm in (each.inputs for each in with_all(env).of("MetricAlarm")):
        queries = alarm.get("metricQueries", ())
        assert ("statistic" in alarm) + ("extendedStatistic" in alarm) + bool(queries) == 1
        assert bool(queries) != ("metricName" in alarm)
        assert bool(queries) == (sum(x.get("returnData", False) for x in queries) == 1)
        periods = {x["metric"]["period"] for x in queries if "metric" in x} or {alarm["period"]}
        (seconds,) = {period * alarm["evaluationPeriods"] for period in periods}
        assert seconds <= (86_400 if max(periods) < 3_600 else 604_800)  # PutMetricAlarm, Period


def test_one_run_of_what_is_scheduled_is_enough_to_be_slow(graph: Graph) -> None:
    """The minutes around a nightly run have no point, and count as fast."""
    rows = {
        each.name.removeprefix("monitoring-"): each.inputs["datapointsToAlarm"]
        for each in graph.of("MetricAlarm")
        if each.name.endswith("-duration")
    }
    once = {"rotation-duration": 1, "snapshots-duration": 1}
    assert rows == {"api-duration": 2, "files-duration": 2, **once}


def test_the_alarm_on_concurrency_knows_the_quota() -> None:
    for quota in (10, 1_000, 5_000):
        graph = graph_of("dev", concurrency_quota=str(quota))
        alarm = graph.one("MetricAlarm", "monitoring-claimed-concurrency").inputs
        assert alarm["threshold"] == 0.8 * quota


def test_an_alarm_of_dynamodb_fills_its_gaps(graph: Graph) -> None:
    tables = [
        each.inputs
        for each in graph.of("MetricAlarm")
        if metrics_of(each.inputs)[0]["namespace"] == "AWS/DynamoDB"
    ]
    assert len(tables) == 2 * (3 + 4) + 2
    for each in tables:
        assert each["metricQueries"][-1]["expression"] == "FILL(metric, 0)"
        assert (each["datapointsToAlarm"], each["evaluationPeriods"]) == (1, 5)  # they come late


@pytest.mark.parametrize(
    ("database_class", "gibibytes", "connections"),
    [
        ("db.t4g.micro", 1, 65),  # of about 80
        ("db.t4g.small", 2, 155),
        ("db.m7g.large", 8, 696),
        ("db.m7g.xlarge", 16, 1_417),
        ("db.r7g.large", 16, 1_417),
        ("db.r7g.2xlarge", 64, 4_000),  # of 5,000, the most
        ("db.x2g.large", 32, 2_859),
    ],
)
def test_the_alarms_of_the_database_are_those_of_its_class(
    database_class: str, gibibytes: int, connections: int
) -> None:
    graph = graph_of("dev", database_class=database_class)
    limits = {
        key: graph.one("MetricAlarm", f"monitoring-database-{key}").inputs["threshold"]
        for key in ("memory", "connections")
    }
    assert limits == {"memory": 0.05 * gibibytes * 2**30, "connections": connections}


@pytest.mark.parametrize("env", ["staging", "prod"])
def test_burn_rates_are_those_of_the_workbook(env: str) -> None:
    graph = graph_of(env)
    budgets = {"availability": 0.1, "latency": 1}
    burns = {
        "fast-burn": (14.4, 3_600, 300),
        "burn": (6, 21_600, 1_800),
        "slow-burn": (1, 259_200, 21_600),
    }
    for system, objective, burn in itertools.product(("api", "web"), budgets, burns):
        rate, *windows = burns[burn]
        for window, seconds in zip(("long", "short"), windows, strict=True):
            name = f"monitoring-{system}-{objective}-{burn}-{window}"
            alarm = graph.one("MetricAlarm", name).inputs
            assert alarm["threshold"] == pytest.approx(rate * budgets[objective])
            assert {x["period"] for x in metrics_of(alarm)} == {seconds}
    assert len(graph.of("CompositeAlarm")) == 2 * len(burns)


@pytest.mark.parametrize("env", ["staging", "prod"])
def test_a_burn_rate_alarm_fires_for_both_windows_of_an_objective(env: str) -> None:
    graph = graph_of(env)
    names = {each.inputs["name"] for each in graph.of("MetricAlarm")}
    for each in graph.of("CompositeAlarm"):
        alarm = each.inputs
        parts = re.findall(r"ALARM\(([^)]+)\)", alarm["alarmRule"])
        assert names >= set(parts) and len(set(parts)) == 4
        shape = r"\(ALARM\(\S+-long-\S+\) AND ALARM\(\S+-short-\S+\)\)"
        assert re.fullmatch(f"{shape} OR {shape}", alarm["alarmRule"])
        assert alarm["alarmActions"] == alarm["okActions"] == told(graph, each.name)
        assert_runbook(alarm["alarmDescription"])
        suppressor = alarm.get("actionsSuppressor", {}).get("alarm")
        assert suppressor == (f"tap-stack-api-release-{env}" if "-api-" in each.name else None)


def test_objectives_of_0_have_no_alarms() -> None:
    graph = graph_of("prod", availability_objective="0", latency_objective="99.5")
    names = [each.name for each in graph.of("MetricAlarm") if re.fullmatch(PARTS, each.name)]
    assert not [name for name in names if "availability" in name]
    assert graph.one("MetricAlarm", "monitoring-web-latency-burn-long").inputs["threshold"] == 3
    assert not graph_of("dev").of("CompositeAlarm")


def check_dimensions(graph: Graph, alarm: Mapping[str, Any]) -> None:
    if alarm["namespace"] == "AWS/CertificateManager":
        (domain,) = graph.of("DomainName")
        used = {domain.inputs["domainNameConfiguration"]["certificateArn"]}
        used |= {each.inputs.get("certificateArn") for each in graph.of("aws:lb/listener:Listener")}
        assert alarm["dimensions"]["CertificateArn"] in used
        return
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
        if alarm.get("metricName", "").endswith(("HostCount", "InServiceInstances")):
            assert alarm["period"] * alarm["datapointsToAlarm"] > grace, alarm["name"]


def test_one_full_machine_is_enough_for_an_alarm(graph: Graph) -> None:
    used = [x.inputs for x in graph.of("MetricAlarm") if x.inputs.get("namespace") == "CWAgent"]
    assert {each["statistic"] for each in used} == {"Maximum"}
    assert len(used) == 2


def watched(graph: Graph) -> set[tuple[str, ...]]:
    """Namespace, metric and the dimensions' values in the order of their names, of every alarm."""
    return {
        (each["namespace"], each["metricName"], *each.get("dimensions", {}).values())
        for alarm in graph.of("MetricAlarm")
        for each in metrics_of(alarm.inputs)
    }


def test_every_function_and_queue_is_watched(graph: Graph) -> None:
    for function in graph.of("Function"):
        name = function.inputs["name"]
        if function.name == "synthetics-function":  # an error or a throttle of it is a failed walk
            assert ("tap-stack", "WalksPassed", name.rpartition("-")[2]) in watched(graph)
            continue
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


def widgets_of(dashboard: Any) -> list[Any]:
    """The widgets of a dashboard."""
    return list(json.loads(dashboard.inputs["dashboardBody"])["widgets"])


def test_each_system_has_a_dashboard_of_metrics_with_their_dimensions(
    graph: Graph, env: str
) -> None:
    found = {each.inputs["dashboardName"]: widgets_of(each) for each in graph.of("Dashboard")}
    assert found.keys() == {f"tap-stack-{x}{env}" for x in ("", "api-", "files-", "web-")}
    titles = {x: {w["properties"]["title"] for w in found[x]} for x in found}
    assert {"API requests", "API latency", "Operations", "Items table"} <= titles[
        f"tap-stack-api-{env}"
    ]
    assert {"Files", f"Function tap-stack-files-{env}"} <= titles[f"tap-stack-files-{env}"]
    assert {"Web requests", "Database load"} <= titles[f"tap-stack-web-{env}"]
    for widget in (x for each in found.values() for x in each if x["type"] == "metric"):
        charges = "charges" in widget["properties"]["title"]
        assert widget["properties"]["region"] == ("us-east-1" if charges else REGION)
        shown = [json.dumps(metric) for metric in widget["properties"]["metrics"]]
        assert len(shown) == len(set(shown)), "a metric is drawn once"
        for metric in widget["properties"]["metrics"]:
            assert len(metric) % 2 == 1  # namespace, name, pairs of dimensions, options


def test_the_overview_has_alarms_objectives_saturation_and_charges(env: str) -> None:
    graph = with_all(env)
    states, *drawn = widgets_of(graph.one("Dashboard", "monitoring-dashboard"))
    notifying = [
        x.inputs.get("alarmName") or x.inputs["name"]
        for x in (*graph.of("CompositeAlarm"), *graph.of("MetricAlarm"))
        if not re.fullmatch(PARTS, x.name) or x.name == "monitoring-api-release"
    ]
    assert len(states["properties"]["alarms"]) == len(notifying) <= 100  # a widget's most
    assert {
        "API objectives", "Web objectives", "Concurrency of the account", "Files table", "Database load", "Web machines",
        "Estimated charges of the account",
    } == {each["properties"]["title"] for each in drawn}  # fmt: skip
    places = [(x["x"], x["y"]) for x in (states, *drawn)]
    assert len(set(places)) == len(places)


def test_the_runbook_has_no_section_for_an_alarm_that_is_gone() -> None:
    sections = re.findall(
        r"^## ([a-z0-9-]+)$", Path(ROOT / "docs" / "operations.md").read_text(), re.MULTILINE
    )
    anchors = {
        each.inputs["alarmDescription"].rpartition("#")[2]
        for graph in (*map(with_all, ENVIRONMENTS), graph_of("dev", files_concurrency="0"))
        for each in (*graph.of("MetricAlarm"), *graph.of("CompositeAlarm"))
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
    assert titles == {
        "nothing-dashboard": ["Estimated charges of the account"],
        "something-dashboard": ["Alarms", "Estimated charges of the account"],
        "something-own-dashboard": ["Queue"],
    }


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
        assert graph.one("Dashboard", "monitoring-dashboard").protect
    assert graph_of("dev").one("Dashboard", "monitoring-dashboard").protect


def test_saved_queries_read_the_logs_that_they_ask_for_fields_that_are_there(env: str) -> None:
    graph = graph_of(env)
    logs = {each.inputs["name"] for each in graph.of("LogGroup")}
    fields = {*tap_stack.ACCESS_LOG, *LOGGED, *ALWAYS}
    saved = {each.inputs["name"]: each.inputs for each in graph.of("QueryDefinition")}
    files = (ROOT / "queries" / "logs").glob("*.txt")
    assert saved.keys() == {f"tap-stack/{env}/{path.stem}" for path in files}
    for query in saved.values():
        assert logs >= set(query["logGroupNames"])
        _, *stages = query["queryString"].splitlines()
        text = re.sub(r'"[^"]*"|(?<![.\w])\d+[a-z]?', "", "\n".join(stages))
        words = set(re.findall(r"@?[a-z][\w.]*", text, re.IGNORECASE))
        named = {x for each in stages for x in re.findall(r" as (\w+)", each)}
        assert words - named <= fields | SYNTAX, query["name"]
        assert query["queryString"].startswith("# ")


#: Fields of the functions' own lines, of every line, and words of the query language.
LOGGED = {"caller", "consumed_capacity", "error", "key", "latency_ms", "level", "message", "request_id",
          "route", "stack", "stack.0", "stack.1", "stack.2", "status", "upload_request_id", "version_id"}  # fmt: skip
ALWAYS = {"@timestamp", "@message", "@log"}
SYNTAX = set("fields filter sort limit stats by bin count sum max pct asc desc and or as".split())


def test_the_fields_of_queries_are_logged() -> None:
    program = (ROOT / "tap_stack.py").read_text()
    for name in LOGGED - {"stack.0", "stack.1", "stack.2"}:
        assert re.search(rf'"{name}"|\b{name}=', program), name


def test_a_stack_without_files_has_no_query_of_them() -> None:
    saved = graph_of("dev", systems="api").of("QueryDefinition")
    assert not [x for x in saved if "failed-files" in x.inputs["name"]]
    assert not [x for x in saved for name in x.inputs["logGroupNames"] if "files" in name]


# A month of traffic, benchmarks.alarms, with shorter ones


def heard(minutes: int, average: float, *incidents: alarms.Incident) -> list[tuple[int, str]]:
    """What is told in so many minutes, and when; alarms by their keys."""
    requests = alarms.month(average, incidents, minutes)
    found = alarms.notifications(graph_of("prod", systems="api"), requests, incidents)
    return [(at, name.removeprefix("tap-stack-").removesuffix("-prod")) for at, name in found]


def test_an_outage_pages_within_minutes_and_good_traffic_never() -> None:
    assert heard(600, 1_200) == []
    outage = alarms.Incident("", 300, 40, failed=0.3)
    first = {name: at for at, name in reversed(heard(600, 1_200, outage))}
    assert first.keys() == {"api-fast-burn", "api-burn", "api-slow-burn", "api-5xx", "count"}
    assert 300 <= first["api-fast-burn"] < 310


def test_few_failures_of_few_requests_page_nobody() -> None:
    failing = alarms.Incident("", 100, 4, failed=1)  # each of about four requests
    assert heard(300, 1, failing) in ([], [(102, "api-5xx")])
    assert 0 < alarms.month(1, [failing], 300).failed[-1] < 5


def test_a_page_waits_for_a_release_and_comes_if_it_burns_on() -> None:
    release = alarms.Incident("", 300, 4, failed=0.3, release=True)
    assert (307, "api-fast-burn") in heard(600, 1_200, release)  # three minutes after it
    short = alarms.Incident("", 300, 1, failed=0.02, release=True)
    assert heard(600, 1_200, short) == [(300, "count")]


def test_the_decision_names_the_pages_that_no_objective_makes() -> None:
    text = (ROOT / "docs" / "decisions" / "0014-alarms.md").read_text()
    (sentence,) = re.findall(r"All other alarms are tickets, but for [^.]+", text)
    graph = with_all("prod")
    topic = graph.outputs["pages_topic_arn"]
    paged = (x for x in graph.of("MetricAlarm") if topic in x.inputs.get("alarmActions", []))
    assert {f"monitoring-{x}" for x in re.findall("`(.+?)`", sentence)} == {x.name for x in paged}


def test_the_decision_has_the_simulated_incidents() -> None:
    text = (ROOT / "docs" / "decisions" / "0014-alarms.md").read_text()
    rows = text.partition(f"| {' | '.join(alarms.HEADINGS)} |\n")[2].split("\n\n")[0].splitlines()
    cells = [line.split(" | ")[0].removeprefix("| ") for line in rows[1:]]
    assert cells == [*(each.what for each in alarms.INCIDENTS), "nothing of these"]
