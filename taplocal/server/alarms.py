"""Alarms: evaluated with their metric's dimensions, period by period. MiniStack ignores both."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ministack.services import cloudwatch

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


def breaching(alarm: Mapping[str, Any], points: list[Any], now: float) -> list[bool]:
    """For each period that counts, newest first, whether it breaches the threshold."""
    statistic = alarm.get("ExtendedStatistic") or alarm.get("Statistic", "Average")
    breaches = COMPARISONS[alarm["ComparisonOperator"]]
    found = []
    for period in range(alarm["EvaluationPeriods"]):
        seconds = alarm["Period"] / 60 * minute_of(alarm["Namespace"])
        end = now - period * seconds
        inside = [each for each in points if end - seconds < each["Timestamp"] <= end]
        if inside:
            value = cloudwatch._stat_value(cloudwatch._calc_stats(inside), statistic, inside)
            found.append(breaches(float(value), float(alarm["Threshold"])))
        elif alarm.get("TreatMissingData") in MISSING:
            found.append(MISSING[alarm["TreatMissingData"]])
    return found


def evaluate(alarm: dict[str, Any]) -> None:
    """Replaces MiniStack's _evaluate_alarm.

    Alarms on metric math or on anomaly detection bands are not evaluated.
    """
    if not alarm.get("MetricName") or alarm.get("ComparisonOperator") not in COMPARISONS:
        return
    dimensions = {each["Name"]: each["Value"] for each in alarm.get("Dimensions", ())}
    key = (alarm.get("Namespace"), alarm.get("MetricName"), cloudwatch._dims_key(dimensions))
    found = breaching(alarm, cloudwatch._metrics.get(key) or [], time.time())
    before = alarm["StateValue"]
    needed = alarm.get("DatapointsToAlarm") or alarm["EvaluationPeriods"]
    state = "ALARM" if sum(found) >= needed else "OK"
    if not found:
        state = before if alarm.get("TreatMissingData") == "ignore" else "INSUFFICIENT_DATA"
    if state != before:
        reason = f"{sum(found)} of {len(found)} periods breach {alarm['Threshold']:g}"
        alarm.update(StateValue=state, StateReason=reason, StateUpdatedTimestamp=int(time.time()))
        cloudwatch._record_history(alarm["AlarmName"], before, state, reason)
        cloudwatch._dispatch_alarm_actions(alarm, before, state, reason)
        cloudwatch._evaluate_parent_alarms(alarm)


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
