"""What the CloudWatch agent does with the configuration that a machine has; the agent is AWS's own."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.aws import Aws, arn
from tests.lab.vpc import Machine

STARTED_WITH = "/opt/aws/amazon-cloudwatch-agent/etc/amazon-cloudwatch-agent.json"
LOG_ACTIONS = ("logs:CreateLogStream", "logs:PutLogEvents")


def check_agent(machine: Machine, aws: Aws) -> str:
    """Follows each log file and metric to where the graph has it; returns the path of the log.

    Of the agent's schema it knows what is used: a section, key or metric beside these is an error.
    """
    graph = aws.vpc.graph
    config = json.loads(machine.run("cat", STARTED_WITH))
    agent, metrics, logs = (config.pop(each) for each in ("agent", "metrics", "logs"))
    assert (config, agent) == ({}, {"metrics_collection_interval": 60})
    (shipped,) = logs.pop("logs_collected").pop("files").pop("collect_list")
    assert not logs
    group = shipped.pop("log_group_name")
    (found,) = [each for each in graph.of("LogGroup") if each.inputs["name"] == group]
    for action in LOG_ACTIONS:
        stream = f"{found.inputs['name']}:log-stream:{machine.id}"
        aws.authorize(machine, action, [f"{arn('test', f'LogGroup/{found.name}')}:{stream}"])
    path = str(shipped.pop("file_path"))
    machine.run("test", "-s", path)
    assert shipped == {"log_stream_name": "{instance_id}"}
    _check_metrics(graph, metrics)
    return path


def _check_metrics(graph: Any, metrics: dict[str, Any]) -> None:
    namespace, collected = metrics.pop("namespace"), metrics.pop("metrics_collected")
    (dimension,) = metrics["append_dimensions"]
    assert metrics == {
        "append_dimensions": {dimension: f"${{aws:{dimension}}}"},
        "aggregation_dimensions": [[dimension]],
    }
    assert collected["disk"].pop("resources") == ["/"]
    made = {
        each if each.startswith(plugin) else f"{plugin}_{each}"  # as the agent names them
        for plugin, of in collected.items()
        for each in of.pop("measurement")
    }
    assert not any(collected.values())
    watched = [
        each.inputs for each in graph.of("MetricAlarm") if each.inputs.get("namespace") == namespace
    ]
    assert {each["metricName"] for each in watched} == made
    assert all(each["dimensions"].keys() == {dimension} for each in watched)
