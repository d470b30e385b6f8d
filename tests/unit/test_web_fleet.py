"""Fleets on this machine: they launch, replace, refresh and go back as Auto Scaling does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

import pytest

from taplocal.web import NOTICE_SECONDS, SCALE
from taplocal.web.fleet import Fleet, Json

GROUP = "arn:targets"


class Machine:
    """What runs as an instance, in these tests."""

    def __init__(self, world: World, member_id: str, data: Json):
        self.world, self.id, self.data = world, member_id, data
        self.ended, self.up, self.told, self.busy, self.port = False, False, "", 0.0, 0
        self.notice: datetime | None = None

    async def launch(self) -> None:
        self.up = not self.data.get("broken")
        self.world.record["Results"][self.id] = "CONTINUE" if self.up else "ABANDON"
        if not self.up:
            raise RuntimeError("the script failed")

    def alive(self) -> bool:
        return not self.ended

    async def terminate(self) -> None:
        self.ended = True

    def console_output(self) -> str:
        return "first\none\n\ntwo\nlast words\n"

    def set_lifecycle_state(self, state: str) -> None:
        self.told = state

    def interrupt(self, at: datetime) -> None:
        self.notice = at

    def cpu_seconds(self) -> float:
        return self.busy


class World:
    """A group's record as the emulator has it, a clock, and a balancer that sees what is up."""

    def __init__(self, desired: int = 1, most: int = 3, **changes: Any):
        self.now, self.machines = 1000.0, dict[str, Machine]()
        self.sick: set[str] = set()
        self.alarms: dict[str, str] = {}
        self.record: Json = {
            "DesiredCapacity": desired,
            "MinSize": 1,
            "MaxSize": most,
            "HealthCheckType": "ELB",
            "HealthCheckGracePeriod": 180,
            "DefaultInstanceWarmup": 120,
            "AvailabilityZones": ["eu-west-1a", "eu-west-1b"],
            "TargetGroupARNs": [GROUP],
            "Hooks": [{"LifecycleHookName": "ready", "HeartbeatTimeout": "900"}],
            "Results": {},
            "Instances": [],
            "Activities": [],
            "InstanceRefreshes": [],
            "Policies": [],
            "MixedInstancesPolicy": policy("1"),
            "Templates": {"1": {}, "2": {}, "3": {"broken": True}},
            **changes,
        }
        self.fleet = Fleet("web", self.make, lambda: self.now)

    def make(self, member_id: str, data: Json, _zone: str) -> Machine:
        self.machines[member_id] = Machine(self, member_id, data)
        return self.machines[member_id]

    def health(self) -> dict[str, dict[str, list[str]]]:
        """By target group and id; what does not run is not seen."""
        states = {
            each.id: ["unhealthy", "Target.Timeout"] if each.id in self.sick else ["healthy", ""]
            for each in self.fleet.targets()
        }
        return {GROUP: states}

    async def look(self, times: int = 1, seconds: float = 0.2) -> None:
        """So many looks; the records get what the fleet tells."""
        for _ in range(times):
            self.fleet.look(self.record, self.health(), self.alarms)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            told = self.fleet.report()
            for each in told["Instances"]:
                assert each["LifecycleState"] in ("Pending:Wait", "InService", "Terminating")
            self.record["Instances"], self.record["Activities"] = (
                told["Instances"],
                told["Activities"],
            )
            for each in self.record["InstanceRefreshes"]:
                each |= told["Refreshes"].get(each["InstanceRefreshId"], {})
            if told["Version"]:
                self.record["MixedInstancesPolicy"] = policy(told["Version"])
            self.now += seconds

    def serving(self) -> list[str]:
        """The versions of the instances in service."""
        return sorted(each.version for each in self.fleet.targets())

    def refresh(self, version: str, **preferences: Any) -> Json:
        """Begins a refresh to a version."""
        begun = {
            "InstanceRefreshId": f"to-{version}",
            "Status": "Pending",
            "Preferences": {
                "MinHealthyPercentage": "100",
                "MaxHealthyPercentage": "110",
                "AutoRollback": "true",
                "SkipMatching": "true",
                **preferences,
            },
            "DesiredConfiguration": {"MixedInstancesPolicy": policy(version)},
        }
        self.record["InstanceRefreshes"].insert(0, begun)
        return begun


def policy(version: str) -> Json:
    """A policy of mixed instances with this version of the template."""
    specification = {"LaunchTemplateId": "lt-1", "Version": version}
    return {"LaunchTemplate": {"LaunchTemplateSpecification": specification}}


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a test in a loop of its own."""
    asyncio.run(asyncio.wait_for(test(), 60))


def test_the_desired_capacity_comes_into_service_in_all_zones() -> None:
    async def test() -> None:
        world = World(desired=2)
        await world.look(3)
        assert world.serving() == ["1", "1"]
        assert {each["AvailabilityZone"] for each in world.record["Instances"]} == {
            "eu-west-1a",
            "eu-west-1b",
        }
        assert [each["StatusCode"] for each in world.record["Activities"]] == ["Successful"] * 2

    run(test)


def test_more_and_fewer_are_wanted() -> None:
    async def test() -> None:
        world = World(desired=3)
        await world.look()
        assert world.fleet.busy()
        await world.look(2)
        assert not world.fleet.busy()
        first = world.fleet.targets()[0]
        world.record["DesiredCapacity"] = 2
        await world.look(4)
        assert len(world.serving()) == 2
        assert first not in world.fleet.targets()  # the oldest goes
        assert world.machines[first.id].ended

    run(test)


@pytest.mark.parametrize("how", ["killed", "sick", "told", "terminated"])
def test_an_instance_that_is_lost_is_replaced(how: str) -> None:
    async def test() -> None:
        world = World()
        await world.look(3)
        lost = world.fleet.targets()[0].id
        world.now += 180 / SCALE
        if how == "killed":
            world.machines[lost].ended = True
        elif how == "sick":
            world.sick.add(lost)
        elif how == "told":
            world.record["Instances"][0]["wish"] = "unhealthy"
        else:
            world.record["Instances"][0]["wish"] = "terminate"
        await world.look(4)
        assert world.serving() == ["1"]
        assert world.fleet.targets()[0].id != lost
        assert world.machines[lost].ended

    run(test)


def test_a_spot_instance_is_replaced_before_ec2_takes_it() -> None:
    async def test() -> None:
        spot = {"InstancesDistribution": {"OnDemandPercentageAboveBaseCapacity": "0"}}
        mixed = {**policy("1"), **spot}
        world = World(desired=2, CapacityRebalance=True, MixedInstancesPolicy=mixed)
        await world.look(20)
        assert all(each["spot"] for each in world.record["Instances"])
        world.record["Instances"][0]["wish"] = "interrupt"
        taken = world.machines[world.record["Instances"][0]["InstanceId"]]
        while not taken.ended:
            await world.look()
            assert len(world.serving()) >= 2  # another one serves before it goes
        assert taken.notice and taken.told == "Terminated"
        assert any("rebalance notice" in each["Cause"] for each in world.record["Activities"])
        await world.look(5)
        assert (len(world.serving()), len(world.record["Instances"])) == (2, 2)

    run(test)


def test_without_another_one_it_is_drained_when_its_notice_ends() -> None:
    async def test() -> None:
        world = World(CapacityRebalance=True)
        await world.look(20)
        (taken,) = world.machines.values()
        world.record["Templates"]["1"] = {"broken": True}  # no capacity
        world.record["Instances"][0]["wish"] = "interrupt"
        await world.look(5, NOTICE_SECONDS / 10)
        assert not taken.ended and world.serving() == ["1"]
        await world.look(8, NOTICE_SECONDS / 10)
        assert taken.ended and world.serving() == []

    run(test)


def test_a_group_that_does_not_rebalance_loses_it_and_then_launches_one() -> None:
    async def test() -> None:
        world = World(desired=2)
        await world.look(20)
        world.record["Instances"][0]["wish"] = "interrupt"
        taken = world.machines[world.record["Instances"][0]["InstanceId"]]
        await world.look(5, NOTICE_SECONDS / 10)
        assert taken.notice and not taken.ended and len(world.machines) == 2
        await world.look(20)
        assert taken.ended and len(world.serving()) == 2
        assert any("status checks" in each["Cause"] for each in world.record["Activities"])

    run(test)


@pytest.mark.parametrize(
    ("share", "base", "spot"), [("0", "0", 4), ("50", "0", 2), ("100", "0", 0), ("50", "1", 1)]
)
def test_the_policy_says_how_many_are_spot_instances(share: str, base: str, spot: int) -> None:
    async def test() -> None:
        distribution = {"OnDemandPercentageAboveBaseCapacity": share, "OnDemandBaseCapacity": base}
        mixed = {**policy("1"), "InstancesDistribution": distribution}
        world = World(desired=4, most=4, MixedInstancesPolicy=mixed)
        await world.look(20)
        assert sum(each["spot"] for each in world.record["Instances"]) == spot

    run(test)


def test_a_sick_instance_has_its_grace_period() -> None:
    async def test() -> None:
        world = World()
        await world.look(3)
        young = world.fleet.targets()[0].id
        world.sick.add(young)
        await world.look(2)
        assert [each.id for each in world.fleet.targets()] == [young]

    run(test)


@pytest.mark.parametrize("desired", [1, 2, 3])
def test_a_refresh_replaces_all_and_never_serves_with_fewer(desired: int) -> None:
    async def test() -> None:
        world = World(desired=desired)
        await world.look(20)
        begun = world.refresh("2", BakeTime="300")
        least, most, seen = desired, 0, set()
        while begun["Status"] not in ("Successful", "Failed"):
            await world.look()
            least = min(least, len(world.serving()))
            most = max(most, len(world.fleet.members))
            seen.add(begun["Status"])
            assert world.now < 2000, begun
        assert (least, world.serving()) == (desired, ["2"] * desired)
        assert most <= desired + 2  # one more, and one that is on its way out
        assert seen == {"InProgress", "Baking", "Successful"}
        assert world.record["MixedInstancesPolicy"] == policy("2")

    run(test)


@pytest.mark.parametrize("end", ["Successful", "RollbackSuccessful"])
def test_a_refresh_without_skip_matching_replaces_those_of_the_version_and_buys_as_it_says(
    end: str,
) -> None:
    async def test() -> None:
        world = World(desired=2)
        await world.look(20)
        before = {each.id for each in world.fleet.targets()}
        begun = world.refresh("1", SkipMatching="false")
        spot = {"InstancesDistribution": {"OnDemandPercentageAboveBaseCapacity": "0"}}
        begun["DesiredConfiguration"]["MixedInstancesPolicy"] |= spot
        while begun["Status"] != end:
            await world.look()
            assert len(world.serving()) >= 2
            assert world.now < 2000, begun
            if end != "Successful" and any(each.spot for each in world.fleet.targets()):
                begun["wish"] = "rollback"
        serving = world.fleet.targets()
        assert len(serving) == 2
        assert [each.spot for each in serving] == [end == "Successful"] * 2
        assert end != "Successful" or before.isdisjoint(each.id for each in serving)

    run(test)


def test_a_version_that_does_not_start_is_rolled_back_with_its_last_words() -> None:
    async def test() -> None:
        world = World(desired=2)
        await world.look(20)
        before = {each.id for each in world.fleet.targets()}
        begun = world.refresh("3")
        while begun["Status"] in ("Pending", "InProgress", "RollbackInProgress"):
            await world.look()
            assert world.serving() == ["1", "1"]
        assert begun["Status"] == "RollbackSuccessful"
        assert "3 instances of version 3 failed" in begun["StatusReason"]
        assert begun["StatusReason"].endswith(": one; two; last words")
        assert {each.id for each in world.fleet.targets()} == before
        assert world.record["MixedInstancesPolicy"] == policy("1")

    run(test)


def test_an_alarm_while_it_bakes_takes_a_version_back() -> None:
    async def test() -> None:
        world = World()
        await world.look(20)
        begun = world.refresh("2", BakeTime="300", AlarmSpecification={"Alarms": ["web-5xx"]})
        while begun["Status"] != "Baking":
            await world.look()
        world.alarms["web-5xx"] = "ALARM"
        while begun["Status"] not in ("RollbackSuccessful", "Successful"):
            await world.look()
        assert begun["Status"] == "RollbackSuccessful"
        assert "web-5xx" in begun["StatusReason"]
        assert world.serving() == ["1"]

    run(test)


@pytest.mark.parametrize(
    ("wish", "end", "left"),
    [("cancel", "Cancelled", ["1"]), ("rollback", "RollbackSuccessful", ["1"])],
)
def test_a_refresh_is_ended_by_a_user(wish: str, end: str, left: list[str]) -> None:
    async def test() -> None:
        world = World()
        await world.look(20)
        begun = world.refresh("2")
        await world.look()
        begun["wish"] = wish
        await world.look(30)
        assert (begun["Status"], world.serving()) == (end, left)

    run(test)


def test_a_silent_instance_is_abandoned_after_the_heartbeat() -> None:
    async def test() -> None:
        world = World()
        world.fleet.look(world.record, {}, {})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        silent = next(iter(world.machines))
        world.record["Results"].clear()
        await world.look(5)
        assert not world.machines[silent].ended
        world.now += 900 / SCALE
        await world.look(3)
        assert world.machines[silent].ended

    run(test)


def test_instances_of_an_earlier_life_are_replaced_and_told() -> None:
    async def test() -> None:
        world = World()
        world.record["Instances"] = [{"InstanceId": "i-1", "LifecycleState": "InService"}]
        await world.look(3)
        assert world.serving() == ["1"]
        assert any("i-1" in each["Description"] for each in world.record["Activities"])

    run(test)


def test_the_capacity_follows_the_requests_and_the_cpu() -> None:
    async def test() -> None:
        world = World()
        tracked = {
            "PredefinedMetricSpecification": {"PredefinedMetricType": "ASGAverageCPUUtilization"},
            "TargetValue": 60,
        }
        world.record["Policies"] = [{"TargetTrackingConfiguration": tracked}]
        await world.look(3)
        (machine,) = (world.machines[each.id] for each in world.fleet.targets())
        for _ in range(4):  # of two CPUs, 90 % are used
            world.fleet.minute(0)
            machine.busy += 1.8
        assert world.fleet.cpu_percent == pytest.approx(90)
        assert world.fleet.report()["DesiredCapacity"] == 2
        assert "Setting the desired capacity to 2" in world.fleet.activities[0]["Description"]

    run(test)
