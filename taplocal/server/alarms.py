"""Alarms: evaluated with their metric's dimensions, period by period, or by metric math, and not
heard while another one suppresses them or a rule mutes them. MiniStack ignores all four."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from ministack.services import cloudwatch

from taplocal.server import mutes
from taplocal.server.expressions import Value, value_of
from taplocal.server.metrics import measure_queues
from taplocal.server.timing import EVALUATION_SECONDS, minute_of

#: Comparison operator of an alarm -> whether a value breaches a threshold.
COMPARISONS = {
    "GreaterThanThreshold": float.__gt__,
    "GreaterThanOrEqualToThreshold": float.__ge__,
    "LessThanThreshold": float.__lt__,
    "LessThanOrEqualToThreshold": float.__le__,
}

#: How a period without data counts; by the others, `missing` and `ignore`, it does not.
MISSING = {"breaching": True, "notBreaching": False}
#: Whose alarms ignore missing data, whatever they are told (PutMetricAlarm, TreatMissingData).
IGNORING = "AWS/DynamoDB"
FURTHER = 0.5  # times as many periods are looked at, besides, if several count

#: Alarm -> the transition that waits for its suppressor or mute rule, and until when at least.
_held = type(cloudwatch._alarms)()


def queries_of(alarm: Mapping[str, Any]) -> list[Any]:
    """What an alarm measures, as metric queries; the alarm is on the one that is returned."""
    if alarm.get("Metrics"):
        return list(alarm["Metrics"])
    metric = {each: alarm.get(each) for each in ("Namespace", "MetricName", "Dimensions")}
    statistic = alarm.get("ExtendedStatistic") or alarm.get("Statistic", "Average")
    return [
        {"Id": "it", "MetricStat": {"Metric": metric, "Period": alarm["Period"], "Stat": statistic}}
    ]


def measured(query: Any, number: int, now: float) -> Value:
    """A metric in one of the last periods, counted from the newest; None without data."""
    metric, period = query["Metric"], query["Period"]
    dimensions = {each["Name"]: each["Value"] for each in metric.get("Dimensions") or ()}
    key = (metric["Namespace"], metric["MetricName"], cloudwatch._dims_key(dimensions))
    seconds = period / 60 * minute_of(metric["Namespace"])
    end = now - number * seconds
    points = cloudwatch._metrics.get(key) or []
    inside = [each for each in points if end - seconds < each["Timestamp"] <= end]
    if not inside:
        return None
    return float(cloudwatch._stat_value(cloudwatch._calc_stats(inside), query["Stat"], inside))


def value_at(queries: list[Any], number: int, now: float) -> Value:
    """What is returned of an alarm's queries in one of the last periods."""
    values: dict[str, Value] = {}
    for each in queries:
        if "MetricStat" in each:
            values[each["Id"]] = measured(each["MetricStat"], number, now)
    for each in queries:
        if "Expression" in each:
            values[each["Id"]] = value_of(each["Expression"], values)
    (returned,) = [each["Id"] for each in queries if each.get("ReturnData", True)]
    return values[returned]


def breaching(alarm: Mapping[str, Any], now: float) -> list[bool]:
    """For each period that counts, newest first, whether it breaches the threshold. If there are
    enough data in a few periods more, missing ones do not count, whatever they are treated as."""
    breaches, queries = COMPARISONS[alarm["ComparisonOperator"]], queries_of(alarm)
    wanted, treated = alarm["EvaluationPeriods"], alarm.get("TreatMissingData", "missing")
    further = round(wanted * FURTHER + 0.5) if wanted > 1 else 0  # AWS: two more than three
    values = [value_at(queries, x, now) for x in range(wanted + further)]
    judged = [None if x is None else breaches(x, float(alarm["Threshold"])) for x in values]
    real = [each for each in judged if each is not None]
    if len(real) >= wanted:
        return real[:wanted]
    missing = None if alarm.get("Namespace") == IGNORING else MISSING.get(treated)
    found = (missing if each is None else each for each in judged[:wanted])
    return [each for each in found if each is not None]


def evaluate(alarm: dict[str, Any]) -> None:
    """Replaces MiniStack's _evaluate_alarm. Those on anomaly detection bands are not evaluated."""
    measures = alarm.get("MetricName") or alarm.get("Metrics")
    if not measures or alarm.get("ComparisonOperator") not in COMPARISONS:
        return
    found, before = breaching(alarm, time.time()), alarm["StateValue"]
    needed = alarm.get("DatapointsToAlarm") or alarm["EvaluationPeriods"]
    state = "ALARM" if sum(found) >= needed else "OK"
    if not found:
        ignoring = alarm.get("Namespace") == IGNORING or alarm.get("TreatMissingData") == "ignore"
        state = before if ignoring else "INSUFFICIENT_DATA"
    if state != before:
        reason = f"{sum(found)} of {len(found)} periods breach {alarm['Threshold']:g}"
        alarm.update(StateValue=state, StateReason=reason, StateUpdatedTimestamp=int(time.time()))
        cloudwatch._record_history(alarm["AlarmName"], before, state, reason)
        cloudwatch._dispatch_alarm_actions(alarm, before, state, reason)
        cloudwatch._evaluate_parent_alarms(alarm)


def remember_all() -> None:
    """Makes alarms keep what they measure by metric math, and who suppresses them."""
    put_metric, put_composite = cloudwatch._put_metric_alarm, cloudwatch._put_composite_alarm

    def metric(params: Any, body: Any, *protocol: Any, **more: Any) -> Any:
        response = put_metric(params, body, *protocol, **more)
        if queries := body and body.get("Metrics"):
            alarm = cloudwatch._alarms[body["AlarmName"]]
            alarm["Metrics"] = queries
            for absent in ("MetricName", "Namespace", "Statistic", "Period"):
                alarm.pop(absent, None)
            evaluate(alarm)
        return response

    def composite(params: Any, body: Any, *protocol: Any, **more: Any) -> Any:
        response = put_composite(params, body, *protocol, **more)
        if alarm := cloudwatch._composite_alarms.get(body and body.get("AlarmName")):
            alarm |= {name: body[name] for name in body if name.startswith("ActionsSuppressor")}
        return response

    cloudwatch._put_metric_alarm, cloudwatch._put_composite_alarm = metric, composite


def suppress() -> None:
    """Holds actions back: of a composite alarm while its suppressor is in ALARM, and a while before
    and after; of any while it is muted. What has changed back meanwhile is not said."""
    dispatch, evaluate_all = cloudwatch._dispatch_alarm_actions, cloudwatch._evaluate_all_alarms

    def dispatched(alarm: dict[str, Any], *states: str) -> None:
        if not alarm.get("ActionsSuppressor") and not mutes.is_muted(alarm):
            dispatch(alarm, *states)
            return
        _held[alarm["AlarmName"]] = (states, time.time() + waiting(alarm, "Wait"))

    def evaluated() -> None:
        evaluate_all()
        for alarm, states in due():
            dispatch(alarm, *states)

    cloudwatch._dispatch_alarm_actions, cloudwatch._evaluate_all_alarms = dispatched, evaluated


def waiting(alarm: Mapping[str, Any], which: str) -> float:
    """Seconds that an alarm waits here: for its suppressor, or after it; 0 without one."""
    return float(alarm.get(f"ActionsSuppressor{which}Period", 0)) / 60 * minute_of("")


def due() -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """The alarms whose last transition is not held back any more, and still holds."""
    for name, (states, until) in list(_held.items()):
        alarm = cloudwatch._alarms.get(name) or cloudwatch._composite_alarms.get(name, {})
        if alarm and mutes.is_muted(alarm):
            continue
        suppressor = cloudwatch._alarms.get(alarm.get("ActionsSuppressor"), {})
        if suppressor.get("StateValue") == "ALARM":
            _held[name] = (states, time.time() + waiting(alarm, "Extension"))
        elif time.time() >= until:
            del _held[name]
            if alarm.get("StateValue") == states[1]:
                yield alarm, states


def install() -> None:
    """Makes alarms evaluate as on AWS, at each DescribeAlarms and PutMetricData."""
    describe, evaluated_at = cloudwatch._describe_alarms, 0.0

    def described(*arguments: Any, **more: Any) -> Any:
        nonlocal evaluated_at
        if time.monotonic() - evaluated_at >= EVALUATION_SECONDS:
            measure_queues()
            cloudwatch._evaluate_all_alarms()
            evaluated_at = time.monotonic()
        return describe(*arguments, **more)

    cloudwatch._evaluate_alarm = evaluate
    cloudwatch._describe_alarms = described
    remember_all()
    suppress()
    mutes.install()
