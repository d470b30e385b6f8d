"""Releases against an AWS with its own timing: every kind of version, every crash point, late metrics."""

from __future__ import annotations

import base64
import calendar
import contextlib
import io
import itertools
import json
import os
import pickletools
import random
import re
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import dill
import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st
from pulumi.dynamic.dynamic import serialize_provider

import tap_stack
from tap_stack import (
    Counts,
    PortableProvider,
    RolloutError,
    RolloutRun,
    chance,
    rollout_provider,
)
from tests.fakes import client_error

ARN = "arn:aws:lambda:eu-west-1:111122223333:function:tap-stack-api-prod"
NAME = ARN.split(":")[-1]
ALARMS = ["api-5xx", "api-errors", "api-latency"]
PROBES = [({"route": "list"}, 200), ({"route": "get"}, 404)]
BUSY = ("ResourceConflictException", "TooManyRequestsException")
MINUTES, PERCENT, KEEP, BOUND_MS = 5, 10, 3, 2_000


class Kind(NamedTuple):
    """What requests to a version come to; `raises` and `answers` are how often, by what it does."""

    raises: float = 0.0
    answers_500: float = 0.0
    milliseconds: float = 40
    smoke: bool = True  # whether the first calls are good all the same
    initializes: bool = True  # with provisioned concurrency


KINDS = {
    "good": Kind(),
    "cold": Kind(initializes=False),
    "broken": Kind(raises=1, smoke=False),  # a missing import
    "raises": Kind(raises=1),
    "raises for 30 %": Kind(raises=0.3),
    "answers 500": Kind(answers_500=1),
    "slow": Kind(milliseconds=2_300),
    "times out": Kind(raises=1, milliseconds=15_000),
    "exits": Kind(raises=1, milliseconds=5),
    "imports what is missing": Kind(raises=1, milliseconds=2),  # in the operation
    "lacks a permission": Kind(answers_500=0.5),  # of one route of two
}
BAD = [kind for kind in KINDS if kind not in ("good", "cold", "broken")]
KINDS["raises or answers 500"] = Kind(raises=0.5, answers_500=0.5)


class Killed(BaseException):
    """The end of the process."""


class FakeAws:
    """Lambda, CloudWatch, the scheduler and the time as one thing, with `rate` requests a second.

    `delay` is how many seconds metrics take to arrive; alarms are evaluated once a minute.

    With `warm_seconds` the alias has provisioned concurrency. Another version then has the traffic
    only once it is initialized: until then, and for ever when that fails, as a "cold" one does, the
    old version has a weight of 1.0. What is refused beside weights: terraform #24957,
    serverless-application-model #1296 and gradientedge/cdk-utils #1110.

    A crash point counts the calls that change something: `killed_at` ends the process at that one,
    before it is done or after; nothing that it calls later is done.
    """

    def __init__(self, rate: float = 1.0, delay: float = 60.0, seed: int = 0) -> None:
        self.versions = {"1": "good"}
        self.live, self.weights, self.revision = "1", dict[str, float](), 1
        self.rate, self.delay, self.random = rate, delay, random.Random(seed)  # noqa: S311
        self.now = 1_000_000_020.0
        self.tagged = ""  # the version that another alias names
        self.usual = 0.0002  # of all requests fail: a service behind them has a bad moment
        self.hidden = False  # whether only users, and not our own requests, see what is wrong
        self.served: defaultdict[str, int] = defaultdict(int)  # requests of users
        self.coming: deque[tuple[float, str, str, str, float]] = deque()
        #: (resource, version, metric) -> minute -> value, of what has arrived.
        self.metrics: defaultdict[Any, defaultdict[float, float]] = defaultdict(
            lambda: defaultdict(float)
        )
        self.states = dict.fromkeys(ALARMS, "OK")
        self.kinds_of_alarms = dict.fromkeys(ALARMS, "Metric")
        self.schedules: dict[str, dict[str, Any]] = {}
        self.smoked: list[str] = []
        self.said: list[str] = []
        self.announced: list[float] = []  # when a release said that it is watched
        self.busy = self.expired = self.throttled = 0
        self.killed_at, self.after, self.dead = -1, False, False
        self.warm_seconds, self.shift_seconds = 0.0, 0.0  # of a shift, and left of the one going on
        self.status = "READY"  # of provisioned concurrency

    def publish(self, kind: str) -> str:
        number = str(max(map(int, self.versions)) + 1)
        self.versions[number] = kind
        return number

    def inputs(self, version: str, **changes: Any) -> dict[str, Any]:
        return {
            "function": ARN, "alias": "live", "version": version, "probes": json.dumps(PROBES),
            "alarms": ALARMS, "percent": float(PERCENT), "bake_seconds": MINUTES * 60.0,
            "versions_kept": float(KEEP), "latency_bound_ms": float(BOUND_MS),
            "failures": {"namespace": "tap", "metric": "RequestsFailed", "environment": "prod"},
            "inconclusive": "promote", "guard_role": "arn:aws:iam::111122223333:role/guard", **changes,
        }  # fmt: skip

    def release(self, version: str, **changes: Any) -> str:
        inputs = self.inputs(version, **changes)
        self.dead = False
        return RolloutRun(lambda service: Process(self), inputs, self, self.said.append).run()

    # The time

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        """So many seconds pass, with their requests, alarms, schedules and shifts."""
        end = self.now + seconds
        while self.now < end:
            step = min(end, self.now - self.now % 60 + 60) - self.now
            self.arrive(step)
            self.now += step
            self.initialize(step)
            for name, schedule in list(self.schedules.items()):
                if schedule["at"] <= self.now:
                    del self.schedules[name]
                    self.fire(schedule)
            if self.now % 60 == 0:
                self.deliver()
                self.evaluate()

    def arrive(self, seconds: float) -> None:
        due = self.rate * seconds
        count = int(due) + (self.random.random() < due % 1)
        share = sum(self.weights.values())
        for _ in range(count):
            other = self.random.random() < share
            version = next(iter(self.weights)) if other else self.live
            self.served[version] += 1
            self.serve(f"{NAME}:live", version)

    def serve(self, resource: str, version: str, healthy: bool = False) -> tuple[str, float]:
        kind = KINDS["good" if healthy else self.versions[version]]
        luck = self.random.random()
        outcome = "Errors" if luck < kind.raises else ""
        if not outcome and luck < kind.raises + kind.answers_500 + self.usual:
            outcome = "RequestsFailed"
        self.coming.append((self.now, resource, version, outcome, kind.milliseconds))
        return outcome, kind.milliseconds

    def initialize(self, seconds: float) -> None:
        """Lambda's own shift goes on."""
        self.shift_seconds -= seconds
        if self.status == "IN_PROGRESS" and self.shift_seconds <= 0:
            kind = KINDS[self.versions[self.live]]
            self.status = "READY" if kind.initializes else "FAILED"
            if kind.initializes:
                self.weights, self.revision = {}, self.revision + 1

    def provision(self) -> None:
        """What Application Auto Scaling asks for; refused while there are weights."""
        if self.weights:
            raise refusal("Alias with weights can not be used with Provisioned Concurrency")

    # CloudWatch

    def deliver(self) -> None:
        """What is old enough becomes visible."""
        while self.coming and self.coming[0][0] + self.delay <= self.now:
            at, resource, version, outcome, milliseconds = self.coming.popleft()
            minute = at - at % 60
            self.metrics[resource, version, "Invocations"][minute] += 1
            self.metrics[resource, version, "quick"][minute] += milliseconds <= BOUND_MS
            if resource.endswith(":live") or outcome == "Errors":
                self.metrics[resource, version, outcome][minute] += 1

    def evaluate(self) -> None:
        def summed(metric: str, minute: int) -> float:
            at = self.now - self.delay - (self.now - self.delay) % 60 - 60 * minute
            keys = [key for key in self.metrics if key[0].endswith(":live") and key[2] == metric]
            return sum(self.metrics[key].get(at, 0) for key in keys)

        errors = [summed("Errors", minute) for minute in range(1, 6)]
        answered = [summed("RequestsFailed", minute) for minute in range(1, 6)]
        slow = [
            summed("quick", minute) < 0.95 * summed("Invocations", minute) for minute in range(1, 6)
        ]
        failed = [
            errors[n] + answered[n] > 0.05 * summed("Invocations", n + 1)
            for n in range(len(errors))
        ]
        found = (all(failed[:3]), errors[0] > 0, sum(slow) >= 3)
        for name, firing in zip(ALARMS, found, strict=True):
            self.states[name] = "ALARM" if firing else "OK"

    def describe_alarms(self, AlarmNames: list[str], AlarmTypes: list[str]) -> dict[str, Any]:
        self.check()
        return {
            f"{kind}s": [
                {"AlarmName": name, "StateValue": state, "StateReason": "it is bad"}
                for name, state in self.states.items()
                if name in AlarmNames and f"{self.kinds_of_alarms[name]}Alarm" == kind
            ]
            for kind in AlarmTypes
        }

    def put_metric_data(self, Namespace: str, MetricData: list[dict[str, Any]]) -> None:
        self.check()
        (data,) = MetricData
        assert (Namespace, data["MetricName"], data["Value"]) == ("tap", "Releasing", 1)
        self.announced.append(self.now)

    def get_metric_data(
        self, MetricDataQueries: list[dict[str, Any]], StartTime: float, EndTime: float
    ) -> dict[str, Any]:
        self.check()
        assert StartTime % 60 == 0 and StartTime <= self.now < EndTime
        self.deliver()
        found = []
        for query in MetricDataQueries:
            asked = query["MetricStat"]["Metric"]
            names = {each["Name"]: each["Value"] for each in asked["Dimensions"]}
            metric, resource = asked["MetricName"], names.get("Resource", f"{NAME}:live")
            version = (
                names.get("ExecutedVersion")
                or names.get("FunctionVersion")
                or resource.split(":")[1]
            )
            quick = metric == "Duration"
            assert query["MetricStat"]["Stat"] == (f"PR(:{BOUND_MS})" if quick else "Sum")
            series = self.metrics[resource, version, "quick" if quick else metric]
            points = {at: value for at, value in series.items() if StartTime <= at < EndTime}
            if quick:
                total = self.metrics[resource, version, "Invocations"]
                points = {at: 100 * value / total[at] for at, value in points.items()}
            found.append({"Id": query["Id"], "Timestamps": [*points], "Values": [*points.values()]})
        return {"MetricDataResults": found}

    # The scheduler

    def create_schedule(self, Name: str, **schedule: Any) -> dict[str, str]:
        with self.crash():
            if Name in self.schedules:
                raise client_error("ConflictException", "CreateSchedule")
            self._schedule(Name, schedule)
        return {"ScheduleArn": Name}

    def update_schedule(self, Name: str, **schedule: Any) -> None:
        with self.crash():
            assert Name in self.schedules
            self._schedule(Name, schedule)

    def _schedule(self, name: str, schedule: dict[str, Any]) -> None:
        assert schedule["Target"]["Arn"] == "arn:aws:scheduler:::aws-sdk:lambda:updateAlias"
        assert schedule["Target"]["RoleArn"].endswith(":role/guard")
        assert schedule["ActionAfterCompletion"] == "DELETE"
        written = time.strptime(schedule["ScheduleExpression"], "at(%Y-%m-%dT%H:%M:%S)")
        at = float(calendar.timegm(written))
        self.schedules[name] = {**schedule, "at": at}

    def delete_schedule(self, Name: str) -> None:
        with self.crash():
            if not self.schedules.pop(Name, None):
                raise client_error("ResourceNotFoundException", "DeleteSchedule")

    def fire(self, schedule: dict[str, Any]) -> None:
        arguments = json.loads(schedule["Target"]["Input"])
        if arguments.get("RevisionId", str(self.revision)) == str(self.revision):
            self.live, self.revision = arguments["FunctionVersion"], self.revision + 1
            self.weights = arguments["RoutingConfig"]["AdditionalVersionWeights"]

    # Lambda

    def check(self) -> None:
        if self.expired:
            self.expired -= 1
            raise client_error("ExpiredTokenException", "an operation")

    def get_alias(self, FunctionName: str, Name: str) -> dict[str, Any]:
        assert (FunctionName, Name) == (ARN, "live")
        routing = {"RoutingConfig": {"AdditionalVersionWeights": dict(self.weights)}}
        return {
            "FunctionVersion": self.live, "RevisionId": str(self.revision),
            **(routing if self.weights else {}),
        }  # fmt: skip

    def update_alias(self, **arguments: Any) -> dict[str, Any]:
        self.check()
        if self.busy:
            self.busy -= 1
            raise client_error(BUSY[self.busy % 2], "UpdateAlias")
        if arguments["RevisionId"] != str(self.revision):
            raise client_error("PreconditionFailedException", "UpdateAlias")
        version = arguments["FunctionVersion"]
        weights = arguments["RoutingConfig"]["AdditionalVersionWeights"]
        assert version in self.versions and set(weights) <= self.versions.keys() - {version}
        assert len(weights) <= 1 and all(0 < share <= 1 for share in weights.values())
        serving = next((each for each, share in self.weights.items() if share == 1), self.live)
        if self.warm_seconds and version != self.live and weights:
            raise refusal("Invalid alias configuration for Provisioned Concurrency")
        with self.crash():
            self.live, self.weights, self.revision = version, weights, self.revision + 1
            if self.warm_seconds:
                self.status, self.shift_seconds = "READY", self.warm_seconds
                if version != serving:
                    self.status, self.weights = "IN_PROGRESS", {serving: 1}
        return self.get_alias(ARN, "live")

    def get_provisioned_concurrency_config(
        self, FunctionName: str, Qualifier: str
    ) -> dict[str, str]:
        assert (FunctionName, Qualifier) == (ARN, "live")
        if not self.warm_seconds:
            code = "ProvisionedConcurrencyConfigNotFoundException"
            raise client_error(code, "an operation", "No Provisioned Concurrency Config found")
        reason = {"StatusReason": "FUNCTION_ERROR_INIT_FAILURE"} if self.status == "FAILED" else {}
        return {"Status": self.status, **reason}

    def invoke(self, FunctionName: str, Qualifier: str, Payload: bytes) -> dict[str, Any]:
        assert FunctionName == ARN
        if self.throttled and self.weights:
            self.throttled -= 1
            raise client_error("TooManyRequestsException", "Invoke")
        status = {json.dumps(event).encode(): status for event, status in PROBES}[Payload]
        first = not self.weights
        if first:
            with self.crash():
                self.smoked.append(Qualifier)
        healthy = self.hidden or (first and KINDS[self.versions[Qualifier]].smoke)
        outcome, milliseconds = self.serve(f"{NAME}:{Qualifier}", Qualifier, healthy)
        self.sleep(milliseconds / 1000)
        if outcome == "Errors":
            body = {"errorMessage": "No module named 'nowhere'"}
            return {"FunctionError": "Unhandled", "Payload": io.BytesIO(json.dumps(body).encode())}
        answer = json.dumps({"statusCode": 500 if outcome else status})
        return {"Payload": io.BytesIO(answer.encode())}

    def get_paginator(self, operation: str) -> Any:
        versions = [{"Version": each} for each in ("$LATEST", *self.versions)]
        assert operation == "list_versions_by_function"
        pages = SimpleNamespace(build_full_result=lambda: {"Versions": versions})
        return SimpleNamespace(paginate=lambda FunctionName: pages)

    def delete_function(self, FunctionName: str, Qualifier: str) -> None:
        assert Qualifier not in (self.live, *self.weights)
        if Qualifier == self.tagged:
            raise client_error("ResourceConflictException", "DeleteFunction")
        with self.crash():
            del self.versions[Qualifier]

    @contextmanager
    def crash(self) -> Iterator[None]:
        """Around a change: the process may end before it or after it."""
        self.killed_at -= 1
        self.dead |= self.killed_at == 0
        if self.dead and not self.after:
            raise Killed
        yield
        if self.dead:
            raise Killed


class Process:
    """What a release calls, for as long as its process lives."""

    def __init__(self, cloud: FakeAws) -> None:
        self.cloud = cloud

    def __getattr__(self, operation: str) -> Any:
        if self.cloud.dead:
            raise Killed
        return getattr(self.cloud, operation)


def refusal(message: str) -> ClientError:
    return client_error("InvalidParameterValueException", "an operation", message)


@pytest.fixture
def cloud() -> FakeAws:
    return FakeAws()


def test_a_good_version_has_its_share_and_then_everything(cloud: FakeAws) -> None:
    verdict = cloud.release(cloud.publish("good"))
    assert (cloud.live, cloud.weights, set(cloud.smoked)) == ("2", {}, {"2"})
    assert 0.05 < cloud.served["2"] / sum(cloud.served.values()) < 0.15
    assert "promoted: " in verdict and cloud.said[-1] == verdict
    assert not cloud.schedules


def test_a_release_says_each_minute_that_it_is_watched(cloud: FakeAws) -> None:
    inputs = cloud.inputs(cloud.publish("good"))
    cloud.release("2")
    said = cloud.announced
    assert said[-1] - said[0] >= inputs["bake_seconds"]
    assert max(later - earlier for earlier, later in itertools.pairwise(said)) < 60


def test_fishers_test_is_the_one_of_the_textbooks() -> None:
    # The lady who tastes tea: all of four are right by chance once in 70 times.
    assert chance(Counts(4, 4), Counts(0, 4)) == pytest.approx(1 / 70)
    assert chance(Counts(3, 4), Counts(1, 4)) == pytest.approx(17 / 70)
    assert chance(Counts(0, 9), Counts(0, 9)) == pytest.approx(1)
    assert chance(Counts(2, 5), Counts(30, 30)) == pytest.approx(1)
    assert chance(Counts(500, 100_000), Counts(4_500, 900_000)) == pytest.approx(0.5, abs=0.02)


def test_what_a_version_raises_and_what_it_answers_with_an_error_count_together() -> None:
    cloud = FakeAws(rate=20.0)
    cloud.hidden = True
    with pytest.raises(RolloutError) as raised:
        cloud.release(cloud.publish("raises or answers 500"))
    bad, total = re.findall(r"(\d+) of (\d+) ", str(raised.value))[0]
    assert bad == total


@pytest.mark.parametrize("delay", [0, 60, 90, 150, 240, 330])
@pytest.mark.parametrize("rate", [0.05, 5.0], ids=["little traffic", "much traffic"])
@pytest.mark.parametrize("kind", BAD)
def test_no_bad_version_is_promoted_however_late_metrics_are(
    kind: str, rate: float, delay: float
) -> None:
    for hidden in (False, True):
        cloud = FakeAws(rate, delay, seed=int(delay))
        cloud.hidden = hidden
        with pytest.raises(RolloutError, match="version 2 was rolled back to 1"):
            cloud.release(cloud.publish(kind), inconclusive="roll_back")
        assert (cloud.live, cloud.weights, cloud.schedules) == ("1", {}, {})


@pytest.mark.parametrize("delay", [0, 90, 240, 330])
def test_no_good_version_is_rolled_back(delay: float) -> None:
    for seed, rate in itertools.product(range(25), (0.05, 5.0)):
        cloud = FakeAws(rate, delay, seed)
        verdict = cloud.release(cloud.publish("good"))
        assert cloud.live == "2"
        assert ("inconclusive" in verdict) == (rate < 1)


def test_failures_that_both_versions_have_roll_nothing_back() -> None:
    for seed in range(25):
        cloud = FakeAws(5.0, 60, seed)
        cloud.usual, cloud.evaluate = 0.02, lambda: None  # type: ignore[method-assign]
        cloud.release(cloud.publish("good"))
        assert cloud.live == "2"


def test_metrics_that_do_not_come_make_it_inconclusive() -> None:
    cloud = FakeAws(delay=10_000)
    assert "inconclusive, and canary_inconclusive is promote" in cloud.release(
        cloud.publish("good")
    )
    with pytest.raises(RolloutError, match=r"rolled back to 2: inconclusive.*900 s late"):
        cloud.release(cloud.publish("good"), inconclusive="roll_back")


def test_all_at_once_is_unwatched_and_says_so(cloud: FakeAws) -> None:
    assert "unwatched" in cloud.release(cloud.publish("good"), percent=100)
    assert cloud.live == "2"
    with pytest.raises(RolloutError, match=r"version 3 failed its smoke test; 2 has .*nowhere"):
        cloud.release(cloud.publish("broken"), percent=100)


def test_an_alarm_of_before_does_not_judge_and_a_new_one_does(cloud: FakeAws) -> None:
    with pytest.raises(RolloutError, match="rolled back"):
        cloud.release(cloud.publish("raises"))
    cloud.delay, cloud.evaluate = 0, lambda: None  # type: ignore[method-assign]
    cloud.states["api-errors"] = "ALARM"  # of the version that was rolled back a moment ago
    verdict = cloud.release(cloud.publish("good"))
    assert cloud.live == "3" and "did not fire: api-5xx, api-latency" in verdict
    changes = iter(["OK", "ALARM"])
    cloud.evaluate = lambda: cloud.states.update({"api-errors": next(changes, "ALARM")})  # type: ignore[method-assign]
    with pytest.raises(RolloutError, match=r"rolled back to 3: api-errors \(it is bad\)"):
        cloud.release(cloud.publish("good"))


def test_an_alarm_that_was_not_evaluated_is_not_good(cloud: FakeAws) -> None:
    cloud.evaluate = lambda: None  # type: ignore[method-assign]
    cloud.states["api-5xx"] = "INSUFFICIENT_DATA"
    with pytest.raises(RolloutError, match="inconclusive"):
        cloud.release(cloud.publish("good"), inconclusive="roll_back")


def test_composite_and_log_alarms_are_alarms(cloud: FakeAws) -> None:
    cloud.kinds_of_alarms.update({"api-5xx": "Composite", "api-latency": "Log"})
    cloud.release(cloud.publish("good"))
    cloud.evaluate = lambda: cloud.states.update({"api-5xx": "ALARM"})  # type: ignore[method-assign]
    with pytest.raises(RolloutError, match="api-5xx"):
        cloud.release(cloud.publish("good"))


def test_a_version_that_cannot_be_called_gets_no_traffic(cloud: FakeAws) -> None:
    began = cloud.now
    with pytest.raises(
        RolloutError, match=r"version 2 failed its smoke test; 1 has the traffic: .*nowhere"
    ):
        cloud.release(cloud.publish("broken"))
    assert (cloud.live, cloud.weights, cloud.served["2"]) == ("1", {}, 0)
    assert cloud.now - began >= sum(tap_stack.SMOKE_PAUSES), "it was tried again and again"


def test_a_response_with_another_status_fails_the_smoke_test_too(cloud: FakeAws) -> None:
    responses = [b'{"statusCode": 403}', b'{"statusCode": 200}', b'{"statusCode": 404}']
    cloud.invoke = lambda **_: {"Payload": io.BytesIO(responses.pop(0))}  # type: ignore[method-assign]
    cloud.release(cloud.publish("good"), percent=100)
    assert cloud.live == "2" and not responses  # the first one was tried again


def test_without_a_look_at_the_alarms_nothing_goes_on(cloud: FakeAws) -> None:
    describe, looks = cloud.describe_alarms, iter(range(3))

    def failing(**arguments: Any) -> Any:
        if next(looks, None) is None:
            raise client_error("InternalServiceFault", "DescribeAlarms")
        return describe(**arguments)

    cloud.describe_alarms = failing  # type: ignore[assignment,method-assign]
    with pytest.raises(RolloutError, match=r"rolled back to 1: .*InternalServiceFault"):
        cloud.release(cloud.publish("good"))
    assert (cloud.live, cloud.weights) == ("1", {})


def test_an_alarm_that_is_not_there_is_an_error_before_any_traffic(cloud: FakeAws) -> None:
    with pytest.raises(RolloutError, match="there is no alarm typo: create it"):
        cloud.release(cloud.publish("good"), alarms=[*ALARMS, "typo"])
    assert not cloud.served["2"] and not cloud.schedules


def test_somebody_who_moves_the_alias_meanwhile_has_the_last_word(cloud: FakeAws) -> None:
    sleep = cloud.sleep

    def interfering(seconds: float) -> None:
        if cloud.weights:
            cloud.live, cloud.weights, cloud.revision = "1", {}, cloud.revision + 1
        sleep(seconds)

    cloud.sleep = interfering  # type: ignore[method-assign]
    with pytest.raises(RolloutError, match="the alias was moved by another"):
        cloud.release(cloud.publish("good"))
    assert cloud.live == "1"
    sleep(10_000)  # and the guard leaves it alone
    assert (cloud.live, cloud.weights, cloud.schedules) == ("1", {}, {})


def test_a_busy_lambda_is_waited_for_and_not_forever(cloud: FakeAws) -> None:
    cloud.busy = 3
    cloud.release(cloud.publish("good"))
    assert cloud.live == "2"
    cloud.busy = 10**6
    with pytest.raises(RolloutError, match=r"ResourceConflict|TooManyRequests"):
        cloud.release(cloud.publish("good"))


def test_throttled_requests_of_our_own_say_nothing(cloud: FakeAws) -> None:
    cloud.throttled = 20
    cloud.release(cloud.publish("good"))
    assert cloud.live == "2"


def test_credentials_that_expire_are_renewed(cloud: FakeAws) -> None:
    connected = []

    def connect(service: str) -> FakeAws:
        connected.append(service)
        if len(connected) > 3:
            cloud.expired = 0
        return cloud

    sleep = cloud.sleep

    def expiring(seconds: float) -> None:
        cloud.expired = 10**6 if cloud.weights and len(connected) <= 3 else cloud.expired
        sleep(seconds)

    cloud.sleep = expiring  # type: ignore[method-assign]
    RolloutRun(connect, cloud.inputs(cloud.publish("good")), cloud, print).run()
    assert cloud.live == "2" and len(connected) > 3


def test_a_share_whose_confirmation_was_lost_is_taken_back(cloud: FakeAws) -> None:
    update = cloud.update_alias

    def lost(**arguments: Any) -> Any:
        answer = update(**arguments)
        if cloud.weights:
            raise client_error("ServiceException", "UpdateAlias")
        return answer

    cloud.update_alias = lost  # type: ignore[method-assign]
    with pytest.raises(RolloutError, match=r"rolled back to 1: .*ServiceException"):
        cloud.release(cloud.publish("good"))
    assert (cloud.live, cloud.weights, cloud.schedules) == ("1", {}, {})


def test_of_two_releases_at_once_one_is_given_up(cloud: FakeAws) -> None:
    first, second, sleep = cloud.publish("good"), cloud.publish("good"), cloud.sleep

    def meanwhile(seconds: float) -> None:
        cloud.sleep = sleep  # type: ignore[method-assign]
        cloud.release(second)

    smoke = cloud.invoke

    def begun(**arguments: Any) -> Any:
        if cloud.weights:
            cloud.sleep = meanwhile  # type: ignore[method-assign]
            cloud.invoke = smoke  # type: ignore[method-assign]
        return smoke(**arguments)

    cloud.invoke = begun  # type: ignore[assignment,method-assign]
    with pytest.raises(RolloutError, match=f"version {first} was given up: the alias was moved"):
        cloud.release(first)
    assert (cloud.live, cloud.weights, cloud.schedules) == (second, {}, {})


def test_a_share_that_begins_beside_another_is_given_up(cloud: FakeAws) -> None:
    describe = cloud.describe_alarms

    def meanwhile(**arguments: Any) -> Any:
        cloud.schedules[f"{NAME}-guard"] = {"at": cloud.now + 10_000}
        return describe(**arguments)

    cloud.describe_alarms = meanwhile  # type: ignore[assignment,method-assign]
    with pytest.raises(
        RolloutError, match=r"version 2 was given up: another release of .* goes on"
    ):
        cloud.release(cloud.publish("good"))
    assert (cloud.live, cloud.weights, len(cloud.schedules)) == ("1", {}, 1)


def test_ten_in_a_row_and_back_and_forth(cloud: FakeAws) -> None:
    for _ in range(10):
        cloud.release(cloud.publish("good"))
    assert sorted(map(int, cloud.versions)) == [9, 10, 11]
    for version in ("10", "11", "10"):
        assert f"version {version}: promoted" in cloud.release(version)
    assert cloud.live == "10"


def test_failures_that_come_before_the_calls_that_had_them_say_nothing(cloud: FakeAws) -> None:
    metrics = cloud.get_metric_data

    def early(**asked: Any) -> Any:
        found = metrics(**asked)
        (query,) = asked["MetricDataQueries"]
        new = {"Name": "FunctionVersion", "Value": "2"}
        if new in query["MetricStat"]["Metric"]["Dimensions"]:  # a failure of the log, at once
            found["MetricDataResults"][0].update(Timestamps=[1], Values=[1])
        return found

    cloud.delay, cloud.get_metric_data = 200, early  # type: ignore[assignment,method-assign]
    cloud.release(cloud.publish("good"))
    assert cloud.live == "2"


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_a_watch_that_is_interrupted_takes_the_share_back(
    cloud: FakeAws, end: type[BaseException]
) -> None:
    cloud.evaluate = lambda: (_ for _ in ()).throw(end())  # type: ignore[method-assign]
    with pytest.raises(end):
        cloud.release(cloud.publish("good"))
    assert (cloud.live, cloud.weights, cloud.schedules) == ("1", {}, {})


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("change", range(1, 12))
def test_the_guard_ends_what_a_killed_release_left(
    cloud: FakeAws, change: int, after: bool
) -> None:
    cloud.killed_at, cloud.after = change, after
    version = cloud.publish("good")
    with contextlib.suppress(Killed):
        cloud.release(version)
    cloud.killed_at = -1
    began = cloud.now
    cloud.sleep(MINUTES * 60 + tap_stack.LATE_SECONDS + tap_stack.GUARD_SECONDS + 60)
    assert cloud.now > began and not cloud.weights
    assert cloud.live in ("1", version) and not cloud.schedules
    cloud.release(version)
    assert (cloud.live, cloud.weights) == (version, {})


def test_a_release_ends_when_provisioned_concurrency_serves_the_version(cloud: FakeAws) -> None:
    cloud.warm_seconds = 90
    refused = []
    wait = cloud.sleep

    def waiting(seconds: float) -> None:
        try:
            cloud.provision()
        except ClientError:
            refused.append(dict(cloud.weights))
        wait(seconds)

    cloud.sleep = waiting  # type: ignore[method-assign]
    cloud.release(cloud.publish("good"))
    assert (cloud.live, cloud.weights, cloud.status) == ("2", {}, "READY")
    assert {"2": 0.1} in refused and {"1": 1} in refused
    cloud.provision()


@pytest.mark.parametrize("percent", [PERCENT, 100])
def test_a_version_that_cannot_be_kept_warm_is_rolled_back(cloud: FakeAws, percent: int) -> None:
    cloud.warm_seconds = 60
    with pytest.raises(RolloutError, match=r"rolled back to 1: .*FUNCTION_ERROR_INIT_FAILURE"):
        cloud.release(cloud.publish("cold"), percent=percent)
    assert (cloud.live, cloud.weights, cloud.status) == ("1", {}, "READY")
    cloud.release(cloud.publish("good"))
    assert (cloud.live, cloud.weights) == ("3", {})


def test_a_version_that_is_never_ready_is_rolled_back(cloud: FakeAws) -> None:
    cloud.warm_seconds = 10**6
    with pytest.raises(RolloutError, match=r"rolled back to 1: .* not ready after 900 s"):
        cloud.release(cloud.publish("good"))
    assert (cloud.live, cloud.weights) == ("1", {})


@pytest.mark.parametrize("kind", ["good", "cold"])
def test_a_shift_of_lambdas_own_is_no_killed_release(cloud: FakeAws, kind: str) -> None:
    cloud.warm_seconds = 60
    cloud.live, cloud.weights, cloud.status, cloud.shift_seconds = "2", {"1": 1}, "IN_PROGRESS", 45
    cloud.versions["2"] = kind
    updates: list[Any] = []
    update = cloud.update_alias

    def counted(**arguments: Any) -> Any:
        updates.append(arguments)
        return update(**arguments)

    cloud.update_alias = counted  # type: ignore[method-assign]
    cloud.release(cloud.publish("good"), percent=100)
    assert (cloud.live, cloud.weights) == ("3", {})
    assert len(updates) == (1 if kind == "good" else 2)  # its failure is cleared first


def test_the_newest_versions_stay_and_whatever_has_traffic(cloud: FakeAws) -> None:
    for _ in range(6):
        cloud.publish("good")
    cloud.tagged = "3"
    cloud.release("2")
    assert sorted(cloud.versions) == ["1", "2", "3", "5", "6", "7"]
    cloud.release("7")
    assert sorted(cloud.versions) == ["2", "3", "5", "6", "7"]


kinds = st.sampled_from(("good", "broken", "raises", "cold"))
#: At which change the process ends, and whether after it; 0 is never.
crashes = st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=2)


@settings(max_examples=40)
@given(st.lists(st.tuples(kinds, crashes), min_size=1, max_size=5), st.sampled_from((0, 60)))
def test_whatever_is_released_and_wherever_it_is_killed(
    releases: list[tuple[str, list[tuple[int, bool]]]], warm_seconds: int
) -> None:
    cloud, good = FakeAws(), "1"
    cloud.warm_seconds = warm_seconds
    harmless = ("good", "" if warm_seconds else "cold")
    for kind, ends in releases:
        version = cloud.publish(kind)
        for cloud.killed_at, cloud.after in (*ends, (0, False)):
            failed = False
            try:
                cloud.release(version)
            except Killed:
                assert cloud.live in (good, version)
                assert sum(cloud.weights.values()) <= PERCENT / 100 or cloud.weights == {good: 1}
                continue
            except RolloutError:
                failed = True
            assert failed == (kind not in harmless)
            assert not cloud.weights
            assert cloud.live == (good if failed else version)
        good = cloud.live
        newest = sorted(cloud.versions, key=int)[-KEEP:]
        assert {good, *newest[-1:]} <= cloud.versions.keys()
        assert len(cloud.versions) <= KEEP + 1
    assert cloud.versions[cloud.live] in harmless


# The provider, as the engine ships it


def pickled(seed: int) -> str:
    """The provider as a program that runs as __main__ registers it."""
    script = (
        "import runpy; from pulumi.dynamic.dynamic import serialize_provider\n"
        "import sys; import types; main = types.ModuleType('__main__'); sys.modules['__main__'] = main\n"
        "source = open('tap_stack.py').read().rpartition('if __name__')[0]\n"
        "main.__file__ = 'tap_stack.py'\n"
        "exec(compile(source, 'tap_stack.py', 'exec'), main.__dict__)\n"
        "sys.stdout.write(serialize_provider(main.PortableProvider(main.rollout_provider)))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    root = Path(tap_stack.__file__).parent
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=root, env=environment, check=True, text=True, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip


def test_the_same_program_ships_the_same_provider_every_time() -> None:
    first = pickled(1)
    assert first == pickled(2)
    assert len(first) < 40_000  # it stands in the state of every function


@pytest.fixture
def shipped() -> Iterator[Any]:
    """The provider after its journey, with a fake of AWS."""
    provider = dill.loads(base64.b64decode(serialize_provider(PortableProvider(rollout_provider))))  # noqa: S301
    provider.cloud = FakeAws()
    provider.client = lambda service, inputs: provider.cloud
    provider.clock = provider.cloud
    yield provider


def test_the_engine_sees_what_changes_and_what_does_not(shipped: Any) -> None:
    plan = {**shipped.cloud.inputs("1"), "__provider": "old code"}
    assert not shipped.diff("id", plan, {**plan, "__provider": "new code"}).changes
    changed = shipped.diff("id", plan, {**plan, "version": "2"})
    assert changed.changes and not changed.replaces
    assert shipped.diff("id", plan, {**plan, "function": "another"}).replaces == ["function"]


def test_the_engine_creates_updates_and_refreshes(shipped: Any) -> None:
    cloud = shipped.cloud
    created = shipped.create(cloud.inputs("1"))
    assert (created.id, created.outs["version"], set(cloud.smoked)) == (ARN, "1", {"1"})
    new = cloud.publish("good")
    outs = shipped.update(created.id, created.outs, cloud.inputs(new)).outs
    assert outs["version"] == new and "promoted: " in outs["verdict"]
    assert not shipped.diff("id", outs, {**cloud.inputs(new), "verdict": None}).changes
    cloud.live = "1"  # by hand
    assert shipped.read(created.id, cloud.inputs(new)).outs["version"] == "1"

    def not_found(**_: Any) -> Any:
        raise client_error("ResourceNotFoundException", "GetAlias")

    cloud.get_alias = not_found
    assert not shipped.read(created.id, cloud.inputs(new)).id


def test_one_release_is_unwatched_where_the_environment_asks_for_it(
    shipped: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cloud = shipped.cloud
    monkeypatch.setenv("UNWATCHED_RELEASE", "1")
    outs = shipped.update("id", {}, cloud.inputs(cloud.publish("raises"))).outs
    assert cloud.live == "2" and "unwatched" in outs["verdict"]
    assert outs["percent"] == PERCENT  # the next release is watched
    assert "all at once, unwatched, as UNWATCHED_RELEASE asks for" in capfd.readouterr().err


@pytest.mark.parametrize("where", ["as __main__", "as an imported module"])
def test_the_provider_is_text_and_no_bytecode(where: str) -> None:
    text = (
        pickled(1)
        if where == "as __main__"
        else serialize_provider(PortableProvider(rollout_provider))
    )
    operations = list(pickletools.genops(base64.b64decode(text)))
    strings = [arg for _, arg, _ in operations if isinstance(arg, str)]
    assert strings[:2] == ["builtins", "eval"]  # the only global that it names, and
    assert strings[2].startswith("(lambda names: exec(")  # a source
    assert len(strings) == 3
    assert not any(isinstance(arg, bytes) for _, arg, _ in operations)
    assert [
        op.name for op, _, _ in operations if op.name in ("GLOBAL", "STACK_GLOBAL", "INST")
    ] == ["STACK_GLOBAL"]
