"""Fleets: user data that EC2 accepts, rollouts of a template against a group that honours them."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import dill
import pytest

from tap_stack import (
    REFRESH_SECONDS,
    SETUP_PATH,
    USER_DATA_LIMIT,
    WATCH_SECONDS,
    FleetRun,
    PortableProvider,
    RolloutError,
    encode_user_data,
    fleet_provider,
)
from tests.fakes import client_error


def test_user_data_writes_the_script_and_runs_it_once() -> None:
    text = base64.b64decode(encode_user_data("#!/bin/bash\necho 'ä\"'\n")).decode()
    heading, _, config = text.partition("\n")
    assert heading == "#cloud-config"
    file = {"path": SETUP_PATH, "permissions": "0700", "content": "#!/bin/bash\necho 'ä\"'\n"}
    assert json.loads(config) == {"write_files": [file], "runcmd": [["bash", SETUP_PATH]]}


def test_user_data_above_the_limit_of_ec2_is_an_error_with_both_numbers() -> None:
    assert USER_DATA_LIMIT == 16_384
    around = len(base64.b64decode(encode_user_data("")))
    largest = "x" * (USER_DATA_LIMIT - around)
    assert len(base64.b64decode(encode_user_data(largest))) == USER_DATA_LIMIT
    message = "user data has 16,385 bytes; EC2 accepts 16,384"
    with pytest.raises(ValueError, match=re.escape(message)):
        encode_user_data(largest + "x")


GROUP = "arn:aws:autoscaling:eu-west-1:111122223333:autoScalingGroup:1:autoScalingGroupName/web"


#: As the engine hands them over: a number is a float.
INPUTS = {
    "group": GROUP,
    "types": ["t4g.small"],
    "spot_percent": 100.0,
    "max_healthy_percent": 110.0,
    "alarms": ["web-5xx", "web-unhealthy"],
}


class FakeGroups:
    """A group, as Auto Scaling keeps it: what a refresh wants is written to it when it succeeds."""

    def __init__(self, end: str = "Successful", looks: int = 3) -> None:
        self.end, self.looks, self.version = end, looks, "1"
        self.refreshes: list[dict[str, Any]] = []
        self.rolled_back, self.there = False, True
        self.types, self.on_demand = ["t4g.small"], 0
        self.firing: set[str] = set()
        self.desired, self.waited = 1, 0.0
        self.minimum, self.serving, self.healthy = 1, 1, 1  # in numbers of instances
        self.next: list[tuple[int, int]] = []  # serving and healthy after each sleep
        self.ended = datetime.now(UTC)  # the refresh or the wait that was begun then
        self.failed = 1  # launches since
        self.said: list[str] = []

    def describe_alarms(self, AlarmNames: list[str], StateValue: str) -> Any:
        assert AlarmNames and StateValue == "ALARM"
        return {"MetricAlarms": [{"AlarmName": x} for x in AlarmNames if x in self.firing]}

    def start_instance_refresh(self, **arguments: Any) -> Any:
        named = arguments["Preferences"].get("AlarmSpecification", {}).get("Alarms", [])
        assert self.firing.isdisjoint(named)
        assert not [each for each in self.refreshes if each["Status"] == "InProgress"]
        assert "LaunchTemplateName" not in str(arguments["DesiredConfiguration"])
        new = {
            "InstanceRefreshId": str(len(self.refreshes)),
            "Status": "InProgress",
            "StartTime": self.ended,
        }
        preferences = arguments["Preferences"]
        self.refreshes.insert(
            0, {**new, "wanted": arguments["DesiredConfiguration"], **preferences}
        )
        return new

    def describe_instance_refreshes(self, AutoScalingGroupName: str, **which: Any) -> Any:
        wanted = which.get("InstanceRefreshIds")
        return {
            "InstanceRefreshes": [
                each for each in self.refreshes if wanted in (None, [each["InstanceRefreshId"]])
            ]
        }

    def rollback_instance_refresh(self, AutoScalingGroupName: str) -> None:
        self.rolled_back, self.looks, self.end = True, 3, "RollbackSuccessful"

    def describe_auto_scaling_groups(self, AutoScalingGroupNames: list[str]) -> Any:
        assert AutoScalingGroupNames == ["web"]
        specification = {
            "LaunchTemplateId": "lt-1",
            "LaunchTemplateName": "web",
            "Version": self.version,
        }
        template = {
            "LaunchTemplateSpecification": specification,
            "Overrides": [{"InstanceType": each} for each in self.types],
        }
        spread = {"OnDemandPercentageAboveBaseCapacity": self.on_demand}
        policy = {"LaunchTemplate": template, "InstancesDistribution": spread}
        group = {"MixedInstancesPolicy": policy, "DesiredCapacity": self.desired}
        states = ["Pending:Wait"] + ["InService"] * self.serving
        group["Instances"] = [{"LifecycleState": each} for each in states]
        group |= {"MinSize": self.minimum, "TargetGroupARNs": ["targets"]}
        return {"AutoScalingGroups": [group] if self.there else []}

    def describe_scaling_activities(self, AutoScalingGroupName: str) -> Any:
        failed = {"StatusCode": "Cancelled", "Description": "Launching"}
        new = {**failed, "EndTime": self.ended + timedelta(hours=1)}
        new["StatusMessage"] = "the hook was abandoned"
        old = {**failed, "StatusMessage": "long ago", "EndTime": self.ended - timedelta(hours=1)}
        return {"Activities": [{"StatusCode": "InProgress"}, *[new] * self.failed, old]}

    def describe_target_health(self, TargetGroupArn: str) -> Any:
        assert TargetGroupArn == "targets"
        states = ["initial"] + ["healthy"] * self.healthy
        return {"TargetHealthDescriptions": [{"TargetHealth": {"State": x}} for x in states]}

    def sleep(self, seconds: float) -> None:
        self.looks -= 1
        self.waited += 0 if self.rolled_back else seconds
        if self.next:
            self.serving, self.healthy = self.next.pop(0)
        if self.looks == 0:
            (refresh,) = [each for each in self.refreshes if each["Status"] == "InProgress"]
            refresh["Status"], refresh["StatusReason"] = self.end, "an instance failed"
            if self.end == "Successful" and "wanted" in refresh:
                policy = refresh["wanted"]["MixedInstancesPolicy"]
                template = policy["LaunchTemplate"]
                self.version = template["LaunchTemplateSpecification"]["Version"]
                self.types = [each["InstanceType"] for each in template["Overrides"]]
                spread = policy["InstancesDistribution"]
                self.on_demand = spread["OnDemandPercentageAboveBaseCapacity"]

    def roll_out(self, version: str, **changes: Any) -> None:
        inputs = {**INPUTS, "version": version, **changes}
        FleetRun(lambda service: self, inputs, self, self.said.append).run()


def test_a_rollout_gives_the_group_the_version_and_does_nothing_again() -> None:
    groups = FakeGroups()
    for _ in range(2):
        groups.roll_out("2")
    assert (groups.version, len(groups.refreshes)) == ("2", 1)
    label = "web: version 2 of the launch template"
    assert groups.said == [
        f"{label} replaces instances of version 1, one after the other",
        f"{label}: has replaced instances of version 1",
        f"{label}: is in place",
    ]


def test_the_first_instances_are_waited_for_until_the_balancer_finds_them_healthy() -> None:
    groups = FakeGroups(looks=-1)
    groups.minimum, groups.serving, groups.healthy = 2, 0, 0
    groups.next = [(2, 0), (2, 1), (2, 2), (0, 0)]
    groups.roll_out("1")
    assert groups.next == [(0, 0)]
    groups.minimum, groups.serving, groups.healthy = 4, 6, 5  # scaled out: more is no failure
    groups.roll_out("1")
    assert groups.next == [(0, 0)]


@pytest.mark.parametrize(
    ("failed", "seconds", "why"),
    [
        (0, REFRESH_SECONDS, "they do not become healthy"),
        (2, REFRESH_SECONDS, "the hook was abandoned; the hook was abandoned"),
        (9, 0, "; ".join(["the hook was abandoned"] * 3)),
    ],
)
def test_the_wait_ends_when_launches_fail_or_take_too_long(
    failed: int, seconds: int, why: str
) -> None:
    groups = FakeGroups(looks=-1)
    groups.minimum, groups.failed = 2, failed
    with pytest.raises(RolloutError) as failure:
        groups.roll_out("1")
    label = "web: version 1 of the launch template"
    assert str(failure.value) == f"{label} has 1 of 2 instances in service: {why}"
    assert groups.waited == seconds


def test_a_version_that_cannot_run_does_not_hold_back_the_next_one() -> None:
    groups = FakeGroups()
    groups.serving = groups.healthy = 0
    groups.roll_out("2")
    assert groups.version == "2"


def test_other_types_and_another_share_of_spot_are_a_refresh_to_the_same_version() -> None:
    """Skip matching compares versions and types: for another share it would replace nothing."""
    groups = FakeGroups()
    groups.roll_out("1", types=["t4g.small", "m7g.medium"])
    assert (groups.types, groups.on_demand) == (["t4g.small", "m7g.medium"], 0)
    groups.looks = 3
    groups.roll_out("1", types=["t4g.small", "m7g.medium"], spot_percent=30.0)
    assert (groups.version, groups.on_demand) == ("1", 70)
    assert [each["SkipMatching"] for each in groups.refreshes] == [False, True]
    groups.roll_out("1", types=["t4g.small", "m7g.medium"], spot_percent=30.0)
    assert groups.said[-1] == "web: version 1 of the launch template: is in place"


@pytest.mark.parametrize(
    ("firing", "watching"),
    [
        ([], ["web-5xx", "web-unhealthy"]),
        (["web-5xx"], ["web-unhealthy"]),
        (["web-5xx", "web-unhealthy"], []),
    ],
)
def test_an_alarm_that_is_in_alarm_already_is_no_reason_to_refuse_the_mend(
    firing: list[str], watching: list[str]
) -> None:
    groups = FakeGroups()
    groups.firing = set(firing)
    groups.roll_out("2")
    assert groups.version == "2"
    (refresh,) = groups.refreshes
    assert refresh.get("AlarmSpecification", {}).get("Alarms", []) == watching
    assert refresh.get("BakeTime") == (300 if watching else None)
    label = "web: version 2 of the launch template"
    said = f"{label} is not watched by {', '.join(firing)}: in ALARM already"
    assert (said in groups.said) is bool(firing)
    groups.looks = 3
    groups.roll_out("1", alarms=[])  # as a bastion's


@pytest.mark.parametrize("end", ["Failed", "RollbackSuccessful", "RollbackFailed", "Cancelled"])
def test_a_version_that_fails_leaves_the_old_one_and_says_why(end: str) -> None:
    groups = FakeGroups(end)
    with pytest.raises(RolloutError) as failure:
        groups.roll_out("2")
    assert str(failure.value) == (
        "web: version 2 of the launch template failed, and the group keeps version 1 "
        f"({end}): an instance failed; the hook was abandoned"
    )
    assert groups.version == "1"
    groups.end, groups.looks = "Successful", 3
    groups.roll_out("2")  # the next update tries again
    assert groups.version == "2"


def test_credentials_that_expire_meanwhile_are_renewed() -> None:
    groups, connected = FakeGroups(), list[str]()
    describe = groups.describe_instance_refreshes

    def expired(**which: Any) -> Any:
        if groups.refreshes and connected.count("autoscaling") == 1:
            raise client_error("ExpiredToken", "DescribeInstanceRefreshes")
        return describe(**which)

    def connect(service: str) -> FakeGroups:
        connected.append(service)
        return groups

    groups.describe_instance_refreshes = expired  # type: ignore[assignment,method-assign]
    inputs = {**INPUTS, "version": "2"}
    FleetRun(connect, inputs, groups, print).run()
    assert groups.version == "2" and connected.count("autoscaling") == 2


def test_a_call_that_is_refused_for_now_is_made_again_after_a_pause() -> None:
    groups, answers = FakeGroups(), [client_error("ExpiredToken", "X")] * 2

    def refused(**_: Any) -> str:
        if answers:
            raise answers.pop()
        return "answered"

    groups.describe_instance_refreshes = refused  # type: ignore[assignment,method-assign]
    rollout = FleetRun(lambda _: groups, {**INPUTS, "version": "2"}, groups, print)
    assert rollout.call("autoscaling", "describe_instance_refreshes") == "answered"
    assert groups.waited == 2 * WATCH_SECONDS


@pytest.mark.parametrize(
    ("desired", "minutes"), [(1, 55), (12, 110), (19, 145), (20, 100), (1_000, 100)]
)
def test_one_that_takes_too_long_is_rolled_back(desired: int, minutes: int) -> None:
    """With 110 % up to 19 instances are replaced one after the other, in four or five minutes each;
    the keys of a deployment live for 180."""
    groups = FakeGroups(looks=-1)
    groups.desired = desired
    with pytest.raises(RolloutError, match=r"RollbackSuccessful"):
        groups.roll_out("2")
    assert groups.rolled_back
    assert groups.waited == 60 * minutes


def test_a_rollback_that_is_under_way_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS begins one itself when an alarm fires late."""
    groups = FakeGroups(looks=-1)

    def sleep(seconds: float) -> None:
        groups.waited += seconds
        if groups.waited > 54 * 60:  # it would be rolled back after 55 minutes
            going_on = groups.waited < 70 * 60
            groups.refreshes[0]["Status"] = f"Rollback{'InProgress' if going_on else 'Successful'}"

    monkeypatch.setattr(groups, "sleep", sleep)
    with pytest.raises(RolloutError, match="RollbackSuccessful"):
        groups.roll_out("2")
    assert not groups.rolled_back


def test_a_refresh_that_somebody_else_began_is_waited_for() -> None:
    groups = FakeGroups()
    groups.refreshes = [{"InstanceRefreshId": "other", "Status": "InProgress"}]
    groups.roll_out("1")
    assert [each["Status"] for each in groups.refreshes] == ["Successful"]


def test_its_provider_starts_from_the_state_alone() -> None:
    source = dill.dumps(PortableProvider(fleet_provider))
    loaded = dill.loads(source)  # noqa: S301 - made a line above
    assert type(loaded).__name__ == "RolloutProvider"
    assert type(loaded).__module__ == "rollout"
    groups = FakeGroups()
    loaded.client, loaded.clock = lambda *_, **__: groups, groups
    inputs = {**INPUTS, "version": "2"}
    assert loaded.create(inputs).id == GROUP
    assert groups.version == "2"
    groups.version = "3"  # by hand
    assert loaded.read(GROUP, inputs).outs["version"] == "3"
    groups.there = False
    assert not loaded.read(GROUP, inputs).id
    assert loaded.diff(GROUP, inputs, {**inputs, "group": "another"}).replaces == ["group"]
