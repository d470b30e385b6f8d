"""An Auto Scaling group that runs: launches, replaces, refreshes, and goes back.

Each look compares the group's record with the instances that are there, and does the next step. All
of the group's times pass SCALE times faster than on AWS. Rules: Amazon EC2 Auto Scaling user guide,
"Instance lifecycle", "Health checks", "How an instance refresh works".
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from taplocal.web import NOTICE_SECONDS, SCALE
from taplocal.web.tracking import Tracking

Json = dict[str, Any]
log = logging.getLogger(__name__)
ACTIVITIES = 100  # kept of a group, and refreshes
CPUS = 2  # of each of the instance types that the program knows by its defaults
FAILURES = 3  # launches in a row that end a refresh; AWS does not say how many
ENDS = ("Successful", "Failed", "Cancelled", "RollbackSuccessful", "RollbackFailed")


class Runner(Protocol):
    """What runs as an instance; `port` is where it answers on 127.0.0.1."""

    @property
    def port(self) -> int: ...

    async def launch(self) -> None: ...

    def alive(self) -> bool: ...

    async def terminate(self) -> None: ...

    def console_output(self) -> str: ...

    def set_lifecycle_state(self, state: str) -> None: ...

    def interrupt(self, at: datetime) -> None: ...

    def cpu_seconds(self) -> float: ...


@dataclass
class Member:
    """An instance of a group; `state` is its LifecycleState, times are seconds of the loop."""

    id: str
    version: str
    zone: str
    began: float
    activity: Json
    runner: Runner
    spot: bool = False
    state: str = "Pending:Wait"
    taken: float = 0.0  # when EC2 takes it back; 0: nobody has said so
    healthy: bool = True
    refresh: str = ""  # the refresh that launched it
    since: float = 0.0  # in service
    ended: float = 0.0  # its user data, without a word
    task: asyncio.Task[None] | None = None


@dataclass
class Refresh:
    """A refresh under way: from which version to which, and since when."""

    id: str
    before: str
    version: str
    began: float
    policy: Json  # what the instances that it launches are bought by
    all: bool = False  # replaces those of the version, too: without skip matching
    failed: int = 0  # launches of the version
    baking: float = 0.0  # since when
    told: Json = field(default_factory=dict)

    @property
    def back(self) -> bool:
        """Whether it is rolled back."""
        return bool(self.told["Status"] == "RollbackInProgress")

    @property
    def target(self) -> str:
        """The version that all instances are to have at the end."""
        return self.before if self.back else self.version


class Fleet:
    """One group. `make(member id, template data, zone)` makes what runs; `clock` gives seconds."""

    def __init__(
        self, name: str, make: Callable[[str, Json, str], Runner], clock: Callable[[], float]
    ):
        self.name, self.make, self.clock = name, make, clock
        self.members: dict[str, Member] = {}
        self.activities: list[Json] = []
        self.refresh: Refresh | None = None
        self.ended: dict[str, Json] = {}  # refreshes, until they are told
        self.brought = ""  # the version that a refresh has brought
        self.tracking, self.desired = Tracking(), 0  # that a policy wants; 0: none
        self.cpu: dict[str, float] = {}  # seconds of each instance until the last minute
        self.cpu_percent = 0.0
        self.record: Json = {}
        self.health: Mapping[str, Mapping[str, list[str]]] = {}
        self._restored = False

    def look(
        self,
        record: Json,
        health: Mapping[str, Mapping[str, list[str]]],
        alarms: Mapping[str, str],
    ) -> None:
        """Does what is due; `health` is by target group and id, `alarms` are states by name."""
        self.record, self.health = record, health
        self._restore()
        for member in list(self.members.values()):
            self._follow(member)
        self._refreshed(alarms)
        self._size()

    def report(self) -> Json:
        """What is there, for the records."""
        refreshes = {**self.ended}
        if self.refresh:
            refreshes[self.refresh.id] = self.refresh.told
        told = {
            "Instances": [self._shown(each) for each in self.members.values()],
            "Activities": self.activities,
            "Refreshes": refreshes,
            "Version": self.brought,
            "DesiredCapacity": self.desired or None,
        }
        self.ended, self.brought, self.desired = {}, "", 0
        return told

    def targets(self) -> list[Member]:
        """The instances that are in service, for the target groups."""
        return [each for each in self.members.values() if each.state == "InService"]

    def busy(self) -> bool:
        """Whether an instance comes or goes."""
        return any(each.state != "InService" for each in self.members.values())

    def target_groups(self) -> list[str]:
        """Its target groups, as metrics name them."""
        return [each.rpartition(":")[2] for each in self.record.get("TargetGroupARNs", ())]

    def minute(self, requests: float) -> None:
        """What the policies make of a minute with so many requests for each target."""
        if not self.record:
            return
        used = {each.id: each.runner.cpu_seconds() for each in self.targets()}
        spent = [seconds - self.cpu[key] for key, seconds in used.items() if key in self.cpu]
        self.cpu = used
        self.cpu_percent = 100 * SCALE / 60 * sum(spent) / (CPUS * len(spent)) if spent else 0.0
        metrics = {
            "ASGAverageCPUUtilization": self.cpu_percent,
            "ALBRequestCountPerTarget": requests,
        }
        decision = self.tracking.minute(self.record, self.record["Policies"], metrics)
        if decision and not self.refresh:
            self.desired = decision.desired
            finish(
                self._activity(
                    f"Setting the desired capacity to {decision.desired}",
                    f"a target tracking policy was triggered: {decision.why}",
                )
            )

    def measure(self) -> list[tuple[str, str, float]]:
        """Its metrics of a minute: namespace, name and value."""
        return [
            ("AWS/EC2", "CPUUtilization", self.cpu_percent),
            ("AWS/AutoScaling", "GroupDesiredCapacity", self.record.get("DesiredCapacity", 0)),
            ("AWS/AutoScaling", "GroupInServiceInstances", len(self.targets())),
        ]

    async def end(self) -> None:
        """Ends all instances at once: the group is deleted, or everything stops."""
        for each in self.members.values():
            if each.task:
                each.task.cancel()
        await asyncio.gather(*(each.runner.terminate() for each in self.members.values()))
        self.members.clear()

    def _restore(self) -> None:
        """Of an earlier life the instances are gone, the activities stay."""
        if self._restored:
            return
        self._restored = True
        self.activities = list(self.record["Activities"])
        for each in self.record["Instances"]:
            activity = self._activity(
                f"Terminating EC2 instance: {each['InstanceId']}",
                "an instance was taken out of service: what ran it has ended",
            )
            finish(activity)

    def _follow(self, member: Member) -> None:
        """The next step of an instance: into service, or out of it."""
        recorded = {each["InstanceId"]: each for each in self.record["Instances"]}
        told = recorded.get(member.id, {})
        if member.state == "Pending:Wait":
            self._admit(member, self.record["Results"].get(member.id))
        elif member.state == "InService":
            if told.get("wish") == "terminate":
                self._retire(member, "a user request")
            elif told.get("wish") == "interrupt" and not member.taken:
                self._interrupt(member)
            elif why := self._replaced(member):
                self._retire(member, why)
            elif why := self._sick(member, told):
                self._failed(member)
                member.healthy = False
                self._retire(member, f"an instance was taken out of service because {why}")
        elif member.state == "Terminating" and member.task is None and self._drained(member):
            member.task = asyncio.create_task(self._terminate(member))

    def _admit(self, member: Member, result: str | None) -> None:
        """By the result of the lifecycle action; a group without a hook waits for the script."""
        hooks = self.record["Hooks"]
        if not hooks and member.ended:
            result = "CONTINUE"
        elif hooks and not result and member.ended:
            waited = (self.clock() - member.ended) * SCALE
            if waited >= int(hooks[0].get("HeartbeatTimeout") or 3600):
                result = hooks[0].get("DefaultResult") or "ABANDON"
        if result == "CONTINUE":
            member.state, member.since = "InService", self.clock()
            member.runner.set_lifecycle_state("InService")
            finish(member.activity)
        elif result:
            lines = [each for each in member.runner.console_output().splitlines() if each.strip()]
            said = "; ".join(each[:200] for each in lines[-3:]) or "it said nothing"
            why = f"the lifecycle action was completed with the result {result}: {said}"
            finish(member.activity, "Failed", why)
            self._failed(member)
            self._retire(member, "an instance did not come into service")

    def _interrupt(self, member: Member) -> None:
        """Gives the notice of a Spot interruption; the group replaces it if it rebalances."""
        member.taken = self.clock() + NOTICE_SECONDS
        member.runner.interrupt(datetime.now(UTC) + timedelta(seconds=NOTICE_SECONDS))

    def _replaced(self, member: Member) -> str:
        """Why an instance with a notice goes now; empty if it stays.

        As on AWS: a group that rebalances has launched another one by then, and drains this one.
        Without that EC2 takes it as it is, with what is in flight, and the group notices.
        """
        if not member.taken:
            return ""
        over = self.clock() >= member.taken
        if not self.record.get("CapacityRebalance"):
            if over and member.task and member.task.done():
                member.task = asyncio.create_task(member.runner.terminate())
            return ""
        sound = [x for x in self._present() if x.state == "InService" and self._passes(x)]
        if over or len(sound) >= self.record["DesiredCapacity"]:
            return "an instance was taken out of service in response to an EC2 rebalance notice"
        return ""

    def _sick(self, member: Member, told: Mapping[str, Any]) -> str:
        """Why an instance is replaced; empty for a sound one."""
        if not member.runner.alive():
            return "EC2 status checks failed"
        if told.get("wish") == "unhealthy":
            return "somebody set its health to Unhealthy"
        grace = self.record["HealthCheckGracePeriod"] / SCALE
        if self.record["HealthCheckType"] == "ELB" and self.clock() - member.since > grace:
            for states in self.health.values():
                state, reason, *_ = states.get(member.id, ["initial", ""])
                if state == "unhealthy":
                    return f"of an ELB system health check failure ({reason})"
        return ""

    def _retire(self, member: Member, cause: str) -> None:
        """Out of service: targets are drained first, then the instance ends."""
        member.state, member.task = "Terminating", None
        member.runner.set_lifecycle_state("Terminated")
        member.activity = self._activity(f"Terminating EC2 instance: {member.id}", cause)

    def _failed(self, member: Member) -> None:
        if self.refresh and member.version == self.refresh.target:
            self.refresh.failed += 1

    def _drained(self, member: Member) -> bool:
        return not any(member.id in states for states in self.health.values())

    async def _terminate(self, member: Member) -> None:
        await member.runner.terminate()
        finish(member.activity)
        self.members.pop(member.id, None)

    def _launch(self, version: str, cause: str) -> None:
        zones = self.record["AvailabilityZones"]
        member_id = f"i-{secrets.token_hex(9)[:17]}"
        zone = zones[len(self.members) % len(zones)]
        data = self.record["Templates"][version]
        activity = self._activity(f"Launching a new EC2 instance: {member_id}", cause)
        runner = self.make(member_id, data, zone)
        member = Member(
            member_id, version, zone, self.clock(), activity, runner, spot=self._buys_spot()
        )
        member.refresh = self.refresh.id if self.refresh and not self.refresh.back else ""
        self.members[member_id] = member
        member.task = asyncio.create_task(self._boot(member))

    def _buys_spot(self) -> bool:
        """Whether the next instance is a Spot one: by the policy's share, rounded down."""
        policy = self.record["MixedInstancesPolicy"]
        if self.refresh and not self.refresh.back:
            policy = self.refresh.policy
        given = policy.get("InstancesDistribution", {})
        base = int(given.get("OnDemandBaseCapacity", 0))
        share = int(given.get("OnDemandPercentageAboveBaseCapacity", 100))
        above = max(self.record["DesiredCapacity"] - base, 0)
        bought = sum(not each.spot for each in self._present())
        wanted: int = base + math.ceil(above * share / 100)
        return bought >= wanted

    async def _boot(self, member: Member) -> None:
        try:
            await member.runner.launch()
        except Exception as error:  # noqa: BLE001 - the console has it, and the hook decides
            log.warning("%s: %s", member.id, error)
        member.ended = self.clock()

    def _refreshed(self, alarms: Mapping[str, str]) -> None:
        """The next step of a refresh, if one is under way."""
        opened = [x for x in self.record["InstanceRefreshes"] if x["Status"] not in ENDS]
        opened = [each for each in opened if each["InstanceRefreshId"] not in self.ended]
        if not opened:
            return
        record = opened[-1]
        if self.refresh is None or self.refresh.id != record["InstanceRefreshId"]:
            self.refresh = self._begun(record)
        refresh, preferences = self.refresh, record["Preferences"]
        if not refresh.back and (why := self._problem(refresh, record, alarms)):
            cancelled = record.get("wish") == "cancel"
            back = preferences.get("AutoRollback") == "true" or record.get("wish") == "rollback"
            if cancelled or not back:
                self._close("Cancelled" if cancelled else "Failed", why)
                return
            refresh.told |= {"Status": "RollbackInProgress", "StatusReason": why}
        stale = self._stale(refresh)
        total = max(len(self._present()), 1)
        refresh.told["InstancesToUpdate"] = len(stale)
        refresh.told["PercentageComplete"] = 100 * (total - min(len(stale), total)) // total
        if stale or len(self._ready(refresh)) < self.record["DesiredCapacity"]:
            refresh.baking = 0.0
            return
        self._bake(refresh, float(preferences.get("BakeTime") or 0))

    def _begun(self, record: Json) -> Refresh:
        before = self._version()
        configuration = record["DesiredConfiguration"]
        wanted = str(specification_of(configuration).get("Version") or before)
        told = {"Status": "InProgress", "PercentageComplete": 0}
        policy = configuration.get("MixedInstancesPolicy") or self.record["MixedInstancesPolicy"]
        every = record["Preferences"].get("SkipMatching") != "true"
        began = self.clock()
        return Refresh(record["InstanceRefreshId"], before, wanted, began, policy, every, told=told)

    def _problem(self, refresh: Refresh, record: Json, alarms: Mapping[str, str]) -> str:
        """Why a refresh does not go on; empty if it does."""
        if record.get("wish"):
            return f"a user asked to {record['wish']} it"
        if refresh.failed >= FAILURES:
            failed = [each for each in self.activities if each["StatusCode"] == "Failed"]
            last = failed[0]["StatusMessage"] if failed else "their health checks failed"
            return f"{refresh.failed} instances of version {refresh.version} failed: {last}"
        named = record["Preferences"].get("AlarmSpecification", {}).get("Alarms", [])
        firing = [each for each in named if alarms.get(each) == "ALARM"]
        return f"CloudWatch alarms in ALARM: {', '.join(firing)}" if firing else ""

    def _bake(self, refresh: Refresh, seconds: float) -> None:
        """All instances have the version: it stays if no alarm fires while it bakes."""
        if refresh.back:
            self._close("RollbackSuccessful", refresh.told["StatusReason"])
            return
        refresh.baking = refresh.baking or self.clock()
        if (self.clock() - refresh.baking) * SCALE >= seconds:
            self.brought = refresh.version
            self._close("Successful", "")
        else:
            refresh.told |= {"Status": "Baking", "StatusReason": "Waiting for the bake time"}

    def _close(self, status: str, why: str) -> None:
        if refresh := self.refresh:
            shown = {**refresh.told, "Status": status, "StatusReason": why, "EndTime": stamp()}
            self.ended[refresh.id] = shown
        self.refresh = None

    def _stale(self, refresh: Refresh) -> list[Member]:
        """The instances that a refresh still has to replace."""
        return [
            each
            for each in self._present()
            if each.version != refresh.target
            or (refresh.all and (each.refresh == refresh.id) == refresh.back)
        ]

    def _present(self) -> list[Member]:
        """All that are not on their way out, as is one with a notice where it is replaced."""
        leaving = self.record.get("CapacityRebalance")
        return [
            each
            for each in self.members.values()
            if each.state != "Terminating" and not (leaving and each.taken)
        ]

    def _passes(self, member: Member) -> bool:
        """Whether all target groups' health checks of an instance pass."""
        return all(x.get(member.id, [""])[0] == "healthy" for x in self.health.values())

    def _ready(self, refresh: Refresh) -> list[Member]:
        """The instances that serve as a refresh wants them, beyond their warmup."""
        warm, stale = self.record["DefaultInstanceWarmup"] / SCALE, self._stale(refresh)
        return [
            each
            for each in self.targets()
            if each not in stale
            and each.version == refresh.target
            and self.clock() - each.since >= warm
            and self._passes(each)
        ]

    def _size(self) -> None:
        """Launches what is missing, and retires what is too much."""
        refresh, version = self.refresh, self._version()
        if refresh and self._stale(refresh):
            self._replace(refresh)
            return
        desired, present = self.record["DesiredCapacity"], self._present()
        cause = f"a difference between desired ({desired}) and actual ({len(present)}) capacity"
        for _ in range(desired - len(present)):
            self._launch(refresh.target if refresh else version, cause)
        if not refresh:
            oldest = sorted(present, key=lambda each: (each.version == version, each.began))
            for each in oldest[: max(0, len(present) - desired)]:
                self._retire(each, cause)

    def _replace(self, refresh: Refresh) -> None:
        """Launches and retires as far as the percentages of a refresh allow."""
        desired, stale = self.record["DesiredCapacity"], self._stale(refresh)
        preferences = next(
            each["Preferences"]
            for each in self.record["InstanceRefreshes"]
            if each["InstanceRefreshId"] == refresh.id
        )
        most = int(preferences.get("MaxHealthyPercentage") or 100)
        surplus = max(1, desired * (most - 100) // 100) if most > 100 else 0
        least = -(-desired * int(preferences.get("MinHealthyPercentage") or 90) // 100)
        cause = f"the instance refresh {refresh.id}"
        serving = [each for each in stale if each.state == "InService"]
        ready = len(self._ready(refresh)) + len(serving)
        spare = max(0, ready - max(least, min(desired, ready - surplus)))
        present = self._present()
        room = min(desired + surplus - len(present), desired - (len(present) - len(stale)))
        for each in [*(x for x in stale if x not in serving), *serving[:spare]]:
            self._retire(each, cause)
        for _ in range(room):
            self._launch(refresh.target, cause)

    def _version(self) -> str:
        """The version of the group's template."""
        found = specification_of(self.record).get("Version")
        return str(found or next(iter(self.record["Templates"])))

    def _activity(self, description: str, cause: str) -> Json:
        now = stamp()
        activity = {
            "ActivityId": str(uuid.uuid4()),
            "AutoScalingGroupName": self.name,
            "Description": description,
            "Cause": f"At {now} {cause}.",
            "StartTime": now,
            "StatusCode": "InProgress",
            "Progress": 50,
        }
        self.activities.insert(0, activity)
        del self.activities[ACTIVITIES:]
        return activity

    def _shown(self, member: Member) -> Json:
        data = self.record["Templates"].get(member.version, {})
        sound = member.healthy and member.runner.alive()
        return {
            "InstanceId": member.id,
            "InstanceType": data.get("InstanceType", ""),
            "AvailabilityZone": member.zone,
            "LifecycleState": member.state,
            "HealthStatus": "Healthy" if sound else "Unhealthy",
            "LaunchTemplate": {**specification_of(self.record), "Version": member.version},
            "ProtectedFromScaleIn": False,
            "spot": member.spot,
        }


def specification_of(record: Mapping[str, Any]) -> Json:
    """The launch template of a group, or of what a refresh wants: its id and version."""
    mixed = record.get("MixedInstancesPolicy") or {}
    found = mixed.get("LaunchTemplate", {}).get("LaunchTemplateSpecification")
    return dict(found or record.get("LaunchTemplate") or {})


def finish(activity: Json, status: str = "Successful", message: str = "") -> None:
    """Ends an activity."""
    activity |= {"StatusCode": status, "EndTime": stamp(), "Progress": 100}
    if message:
        activity["StatusMessage"] = message


def stamp() -> str:
    """The time as Auto Scaling writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def merged(fleets: Iterable[Fleet], group: str) -> list[Member]:
    """The members of all fleets that serve a target group."""
    return [
        member
        for fleet in fleets
        if group in fleet.record.get("TargetGroupARNs", ())
        for member in fleet.targets()
    ]
