"""Metrics of functions, log lines and queues.

Functions have metrics by alias and version and those of their log lines (the embedded metric
format). MiniStack measures functions by name only.
"""

from __future__ import annotations

import contextvars
import itertools
import json
import re
import threading
import time
from collections.abc import Mapping
from typing import Any

from ministack.services import cloudwatch, lambda_svc, sqs

from taplocal.server import timing
from taplocal.server.environments import Environments
from taplocal.server.releases import qualifier_of_call


def count(namespace: str, dimensions: Mapping[str, str], **values: float) -> None:
    """Adds values to metrics when they are due, as of now."""
    now, delay = time.time(), timing.delay_of(namespace)
    if not delay:
        record(namespace, dimensions, values)
        return
    context = contextvars.copy_context()
    late = context.run, (record, namespace, dimensions, values, 1, now)
    threading.Timer(delay, *late).start()


def record(
    namespace: str,
    dimensions: Mapping[str, str],
    values: Mapping[str, float],
    times: int = 1,
    at: float | None = None,
) -> None:
    """Adds values of a time, which is now; equal ones within a second are one with a count."""
    at = time.time() if at is None else at
    for metric, value in values.items():
        key = (namespace, metric, cloudwatch._dims_key(dict(dimensions)))
        points = cloudwatch._metric_bucket(key)
        recent = itertools.takewhile(lambda each: each["Timestamp"] > at - 1, reversed(points))
        same = next((each for each in recent if each["Value"] == value), None)
        if same:
            same["Count"] = same.get("Count", 1) + times
        else:
            cloudwatch.record_metric(namespace, metric, value, "None", dict(dimensions))
            points[-1].update(Count=times, Timestamp=at)


def measure_functions(environments: Environments) -> None:
    """Records the metrics of functions, by alias and version; Duration excludes the cold start."""
    execute = lambda_svc._execute_function

    def executed(function: Any, event: Any) -> Any:
        config = function.get("config") or function
        if lambda_svc._function_config_scope_mismatch(config):
            return execute(function, event)  # calls this function again, in the right scope
        began = time.monotonic()
        result = execute(function, event)
        duration = round((time.monotonic() - began - environments.take_wait_seconds()) * 1000)
        for dimensions in _dimension_sets(config["FunctionName"], config.get("Version", "$LATEST")):
            if result.get("throttle"):
                count("AWS/Lambda", dimensions, Throttles=1)
            else:
                failed = bool(result.get("error"))
                values = {"Invocations": 1, "Errors": failed, "Throttles": 0, "Duration": duration}
                count("AWS/Lambda", dimensions, **values)
        return result

    lambda_svc._execute_function = executed
    lambda_svc._emit_lambda_metrics = lambda *_arguments, **_values: None


def _dimension_sets(name: str, version: str) -> list[dict[str, str]]:
    sets = [{"FunctionName": name}]
    if qualifier := qualifier_of_call.get():
        by_resource = {**sets[0], "Resource": f"{name}:{qualifier}"}
        sets += [by_resource, {**by_resource, "ExecutedVersion": version}]
    return sets


def measure_logs() -> None:
    """Records the metrics in the log lines of functions."""
    emit = lambda_svc._emit_lambda_logs

    def emitted(function: Any, request_id: str, text: str, *arguments: Any, **more: Any) -> None:
        emit(function, request_id, text, *arguments, **more)
        for line in (text or "").splitlines():
            if '"_aws"' in line:
                count_line(line)

    lambda_svc._emit_lambda_logs = emitted


def count_line(line: str) -> None:
    """Counts the metrics of a line in the embedded metric format; other lines have none."""
    try:
        fields = json.loads(line)
    except ValueError:
        return
    for each in fields["_aws"]["CloudWatchMetrics"]:
        values = {metric["Name"]: fields[metric["Name"]] for metric in each["Metrics"]}
        for names in each["Dimensions"]:
            count(each["Namespace"], {name: str(fields[name]) for name in names}, **values)


def answer_percentile_ranks() -> None:
    """Makes a metric have the statistic PR(:x): how many percent of the values are x or less."""
    statistic = cloudwatch._stat_value

    def value(stats: Any, name: str, points: Any = None) -> Any:
        rank = re.fullmatch(r"PR\(:([\d.]+)\)", name)
        if not rank:
            return statistic(stats, name, points)
        samples = cloudwatch._percentile_samples(points or [])
        below = sum(weight for sample, weight in samples if sample <= float(rank[1]))
        return 100 * below / sum(weight for _, weight in samples)

    cloudwatch._stat_value = value


def measure_queues() -> None:
    """Records how many messages the queues of this account have."""
    for found in list(sqs._queues.values()):
        sqs._refresh_counts(found)
        visible = int(found["attributes"]["ApproximateNumberOfMessages"])
        named = {"QueueName": found["name"]}
        record("AWS/SQS", named, {"ApproximateNumberOfMessagesVisible": visible})


def install(environments: Environments) -> None:
    """Replaces MiniStack's functions."""
    measure_functions(environments)
    measure_logs()
    answer_percentile_ranks()
