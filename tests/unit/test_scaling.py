"""Auto Scaling on the local cloud: what an update of a group keeps to."""

from __future__ import annotations

from typing import Any

import pytest
from ministack.services import autoscaling

from taplocal.server import scaling

POLICY = {
    "MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.LaunchTemplateId": "lt-1",
    "MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.Version": "2",
}


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A group of the emulator, whose own part of an update a test plays."""
    made: dict[str, Any] = {"DesiredCapacity": 2, "MinSize": 1, "MaxSize": 3}
    monkeypatch.setitem(autoscaling._asgs, "web", made)
    monkeypatch.setattr(scaling, "_update", lambda _: (200, {}, b""))
    monkeypatch.setattr(scaling, "resize", lambda _: None)
    return made


def update(**parameters: str) -> None:
    assert scaling.update({"AutoScalingGroupName": "web", **parameters})[0] == 200


def test_an_update_has_the_policy_that_it_names_and_else_the_one_before(
    group: dict[str, Any],
) -> None:
    update(**POLICY)
    named = group["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"]
    assert named == {"LaunchTemplateId": "lt-1", "Version": "2"}
    update()
    assert group["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"] == named


@pytest.mark.parametrize(("desired", "within"), [(0, 1), (2, 2), (9, 3)])
def test_the_desired_capacity_stays_within_the_limits(
    group: dict[str, Any], desired: int, within: int
) -> None:
    group["DesiredCapacity"] = desired
    update(CapacityRebalance="true")
    assert (group["DesiredCapacity"], group["CapacityRebalance"]) == (within, True)
