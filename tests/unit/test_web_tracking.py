"""Target tracking: out after three minutes, in after fifteen, within the limits."""

from __future__ import annotations

from typing import Any

import pytest

from taplocal.web.tracking import IN_MINUTES, OUT_MINUTES, Tracking

CPU, REQUESTS = "ASGAverageCPUUtilization", "ALBRequestCountPerTarget"


def policy(kind: str, target: float) -> dict[str, Any]:
    """A policy as PutScalingPolicy stores it."""
    specification = {"PredefinedMetricType": kind}
    return {
        "TargetTrackingConfiguration": {
            "PredefinedMetricSpecification": specification,
            "TargetValue": target,
        }
    }


POLICIES = [policy(CPU, 60), policy(REQUESTS, 3_000)]


def group(desired: int) -> dict[str, Any]:
    """A group of one to six instances."""
    return {"DesiredCapacity": desired, "MinSize": 1, "MaxSize": 6, "DefaultInstanceWarmup": 120}


def after(minutes: int, desired: int, cpu: float, requests: float) -> list[int | None]:
    """What each of so many minutes decides, the group staying as it is."""
    tracking = Tracking()
    found = (
        tracking.minute(group(desired), POLICIES, {CPU: cpu, REQUESTS: requests})
        for _ in range(minutes)
    )
    return [each.desired if each else None for each in found]


@pytest.mark.parametrize(
    ("desired", "cpu", "requests", "wanted"),
    [(1, 90, 0, 2), (2, 90, 0, 3), (1, 10, 9_000, 3), (2, 100, 9_000, 6), (4, 100, 9_000, 6)],
)
def test_out_in_proportion_after_three_minutes(
    desired: int, cpu: float, requests: float, wanted: int
) -> None:
    assert after(OUT_MINUTES, desired, cpu, requests) == [None] * (OUT_MINUTES - 1) + [wanted]


def test_in_by_one_after_fifteen_minutes_below() -> None:
    assert after(IN_MINUTES, 3, 10, 100) == [None] * (IN_MINUTES - 1) + [2]
    assert after(IN_MINUTES, 1, 10, 100) == [None] * IN_MINUTES  # the minimum


def test_not_in_while_one_metric_is_near_its_target() -> None:
    assert after(IN_MINUTES, 3, 10, 2_800) == [None] * IN_MINUTES


def test_a_peak_of_two_minutes_changes_nothing() -> None:
    tracking = Tracking()
    for cpu in (90, 90, 50) * 5:
        assert tracking.minute(group(1), POLICIES, {CPU: cpu, REQUESTS: 0}) is None


def test_what_was_launched_is_waited_for() -> None:
    tracking = Tracking()
    found = [tracking.minute(group(1), POLICIES, {CPU: 90, REQUESTS: 0}) for _ in range(6)]
    assert [index for index, each in enumerate(found) if each] == [2, 5]
    warm = {**group(1), "DefaultInstanceWarmup": 600}
    slow = Tracking()
    found = [slow.minute(warm, POLICIES, {CPU: 90, REQUESTS: 0}) for _ in range(12)]
    assert [index for index, each in enumerate(found) if each] == [2]
