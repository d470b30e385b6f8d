"""Releases against a Lambda that honours weights, with every kind of version and every crash point."""

from __future__ import annotations

import base64
import io
import json
import os
import pickletools
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dill
import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st
from pulumi.dynamic.dynamic import serialize_provider

import tap_stack
from tap_stack import PortableProvider, RolloutError, RolloutRun
from tests.fakes import client_error

ARN = "arn:aws:lambda:eu-west-1:111122223333:function:tap-stack-api-prod"
ALARMS = ["errors", "latency"]
SECONDS, PERCENT, KEEP = 300, 10, 3
#: What a version does -> the alarm that its traffic raises.
TROUBLE = {"good": "", "broken": "", "raising": "errors", "slow": "latency", "cold": ""}


class Killed(BaseException):
    """The end of the process."""


class FakeAws:
    """Lambda and CloudWatch as one thing: versions, an alias with weights, alarms of the traffic.

    With `warm_seconds` the alias has provisioned concurrency. Another version then has the traffic
    only once it is initialized: until then, and for ever when that fails, as a "cold" one does, the
    old version has a weight of 1.0. What is refused beside weights: terraform #24957,
    serverless-application-model #1296 and gradientedge/cdk-utils #1110.

    A crash point counts the calls that change something: `killed_at` ends the process at that one,
    before it is done or after.
    """

    class exceptions:  # noqa: N801 - the SDK's name
        class ProvisionedConcurrencyConfigNotFoundException(Exception): ...  # noqa: N818

        class ResourceNotFoundException(Exception): ...  # noqa: N818

        class PreconditionFailedException(Exception): ...  # noqa: N818

    def __init__(self) -> None:
        self.versions = {"1": "good"}
        self.live, self.weights, self.revision = "1", dict[str, float](), 1
        self.firing: dict[str, str] = {}
        self.served: defaultdict[str, float] = defaultdict(
            float
        )  # seconds of the whole traffic, by version
        self.smoked: list[str] = []
        self.busy = 0
        self.killed_at, self.after = -1, False
        self.interfere = False
        self.warm_seconds, self.shift_seconds = 0.0, 0.0  # of a shift, and left of the one going on
        self.status = "READY"  # of provisioned concurrency

    def publish(self, kind: str) -> str:
        number = str(max(map(int, self.versions)) + 1)
        self.versions[number] = kind
        return number

    def inputs(self, version: str, **changes: Any) -> dict[str, Any]:
        return {
            "function": ARN, "alias": "live", "version": version, "smoke_event": "{}", "alarms": ALARMS,
            "percent": float(PERCENT), "bake_seconds": float(SECONDS), "versions_kept": float(KEEP), **changes,
        }  # fmt: skip

    def release(self, version: str, **changes: Any) -> None:
        RolloutRun(self, self, self.inputs(version, **changes), self.pass_time).run()

    def pass_time(self, seconds: float) -> None:
        """The traffic of so many seconds goes where the weights send it, and has its effect."""
        self.initialize(seconds)
        shares = {self.live: 1 - sum(self.weights.values()), **self.weights}
        for version, share in shares.items():
            self.served[version] += seconds * share
            if alarm := TROUBLE[self.versions[version]]:
                self.firing[alarm] = "it is bad"
        if not any(TROUBLE[self.versions[version]] for version in shares):
            self.firing.clear()
        if self.interfere and self.weights:
            self.live, self.weights, self.revision = "1", {}, self.revision + 1

    def provision(self) -> None:
        """What Application Auto Scaling asks for; refused while there are weights."""
        if self.weights:
            raise refusal("Alias with weights can not be used with Provisioned Concurrency")

    def initialize(self, seconds: float) -> None:
        """Lambda's own shift goes on."""
        self.shift_seconds -= seconds
        if self.status == "IN_PROGRESS" and self.shift_seconds <= 0:
            self.status = "FAILED" if self.versions[self.live] == "cold" else "READY"
            if self.status == "READY":
                self.weights, self.revision = {}, self.revision + 1

    # Lambda

    def get_alias(self, FunctionName: str, Name: str) -> dict[str, Any]:
        assert (FunctionName, Name) == (ARN, "live")
        routing = {"RoutingConfig": {"AdditionalVersionWeights": dict(self.weights)}}
        return {
            "FunctionVersion": self.live, "RevisionId": str(self.revision),
            **(routing if self.weights else {}),
        }  # fmt: skip

    def update_alias(self, **arguments: Any) -> dict[str, Any]:
        if self.busy:
            self.busy -= 1
            raise client_error(sorted(tap_stack.BUSY)[self.busy % 2], "UpdateAlias")
        if arguments["RevisionId"] != str(self.revision):
            raise self.exceptions.PreconditionFailedException("the revision has changed")
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
            raise self.exceptions.ProvisionedConcurrencyConfigNotFoundException
        reason = {"StatusReason": "FUNCTION_ERROR_INIT_FAILURE"} if self.status == "FAILED" else {}
        return {"Status": self.status, **reason}

    def invoke(self, FunctionName: str, Qualifier: str, Payload: bytes) -> dict[str, Any]:
        assert (FunctionName, Payload) == (ARN, b"{}")
        with self.crash():
            self.smoked.append(Qualifier)
        if self.versions[Qualifier] == "broken":
            body = {"errorMessage": "No module named 'nowhere'"}
            return {"FunctionError": "Unhandled", "Payload": io.BytesIO(json.dumps(body).encode())}
        return {"Payload": io.BytesIO(b'{"statusCode": 200}')}

    def get_paginator(self, operation: str) -> Any:
        versions = [{"Version": each} for each in ("$LATEST", *self.versions)]
        pages = {
            "list_versions_by_function": [{"Versions": versions[:2]}, {"Versions": versions[2:]}],
            "list_aliases": [{"Aliases": [self.get_alias(ARN, "live")]}],
        }
        return SimpleNamespace(paginate=lambda FunctionName: pages[operation])

    def delete_function(self, FunctionName: str, Qualifier: str) -> None:
        assert Qualifier not in (self.live, *self.weights)
        with self.crash():
            del self.versions[Qualifier]

    # CloudWatch

    def describe_alarms(self, AlarmNames: list[str]) -> dict[str, Any]:
        return {
            "MetricAlarms": [
                {"AlarmName": each, "StateValue": "ALARM" if each in self.firing else "OK",
                 "StateReason": self.firing.get(each, "")}
                for each in AlarmNames if each in ALARMS
            ]
        }  # fmt: skip

    @contextmanager
    def crash(self) -> Iterator[None]:
        """Around a change: the process may end before it or after it."""
        self.killed_at -= 1
        due = self.killed_at == 0

        if due and not self.after:
            raise Killed
        yield
        if due and self.after:
            raise Killed


def refusal(message: str) -> ClientError:
    return client_error("InvalidParameterValueException", "an operation", message)


@pytest.fixture
def cloud() -> FakeAws:
    return FakeAws()


def test_a_good_version_has_its_share_and_then_everything(cloud: FakeAws) -> None:
    new = cloud.publish("good")
    cloud.release(new)
    assert (cloud.live, cloud.weights, cloud.smoked) == (new, {}, [new])
    assert cloud.served == pytest.approx({"1": SECONDS * 0.9, "2": SECONDS * 0.1})


def test_all_at_once_asks_no_alarm_and_is_the_way_past_firing_ones(cloud: FakeAws) -> None:
    cloud.versions["1"] = "raising"
    cloud.pass_time(60)
    fix = cloud.publish("good")
    with pytest.raises(
        RolloutError, match=r"not begun, and 1 has the traffic.*errors.*canary_percent=100"
    ):
        cloud.release(fix)
    assert (cloud.live, cloud.weights) == ("1", {})
    cloud.release(fix, percent=100)
    assert cloud.live == fix


def test_alarms_that_calm_down_by_themselves_are_waited_for(cloud: FakeAws) -> None:
    cloud.firing["errors"] = "of the version that was rolled back a minute ago"
    cloud.release(cloud.publish("good"))
    assert cloud.live == "2"


def test_a_version_that_cannot_be_called_gets_no_traffic(cloud: FakeAws) -> None:
    with pytest.raises(
        RolloutError, match=r"version 2 failed its smoke test; 1 has the traffic: .*nowhere"
    ):
        cloud.release(cloud.publish("broken"))
    assert (cloud.live, cloud.weights, cloud.served["2"]) == ("1", {}, 0)


def test_a_response_with_an_error_status_fails_the_smoke_test_too(cloud: FakeAws) -> None:
    responses = [b'{"statusCode": 503}', b'{"statusCode": 200}']
    cloud.invoke = lambda **_: {"Payload": io.BytesIO(responses.pop(0))}  # type: ignore[method-assign]
    cloud.release(cloud.publish("good"))
    assert cloud.live == "2" and not responses  # the first one was tried again


@pytest.mark.parametrize("kind", ["raising", "slow"])
def test_a_version_that_raises_an_alarm_is_taken_back(cloud: FakeAws, kind: str) -> None:
    with pytest.raises(RolloutError, match=f"version 2 was rolled back to 1: {TROUBLE[kind]} .it"):
        cloud.release(cloud.publish(kind))
    assert (cloud.live, cloud.weights) == ("1", {})
    assert cloud.served["2"] <= tap_stack.WATCH_SECONDS * PERCENT / 100


def test_without_a_look_at_the_alarms_nothing_goes_on(cloud: FakeAws) -> None:
    looks = iter([{"MetricAlarms": [{"AlarmName": each, "StateValue": "OK"} for each in ALARMS]}])

    def describe(**_: Any) -> Any:
        if look := next(looks, None):
            return look
        raise client_error("InternalServiceFault", "DescribeAlarms")

    cloud.describe_alarms = describe  # type: ignore[assignment,method-assign]
    with pytest.raises(RolloutError, match=r"rolled back to 1: .*InternalServiceFault"):
        cloud.release(cloud.publish("good"))
    assert (cloud.live, cloud.weights) == ("1", {})


def test_an_alarm_that_is_not_there_is_an_error_before_any_traffic(cloud: FakeAws) -> None:
    with pytest.raises(RolloutError, match="there is no alarm typo"):
        cloud.release(cloud.publish("good"), alarms=[*ALARMS, "typo"])
    assert not cloud.served["2"]


def test_somebody_who_moves_the_alias_meanwhile_has_the_last_word(cloud: FakeAws) -> None:
    cloud.interfere = True
    with pytest.raises(RolloutError, match="the alias was moved by another"):
        cloud.release(cloud.publish("good"))
    assert cloud.live == "1"


def test_a_busy_lambda_is_waited_for_and_not_forever(cloud: FakeAws) -> None:
    cloud.busy = 3
    cloud.release(cloud.publish("good"))
    assert cloud.live == "2"
    cloud.busy = 10**6
    with pytest.raises(ClientError, match=r"ResourceConflict|TooManyRequests"):
        cloud.release(cloud.publish("good"))


def test_a_release_ends_when_provisioned_concurrency_serves_the_version(cloud: FakeAws) -> None:
    cloud.warm_seconds = 90
    refused = []
    wait = cloud.pass_time

    def waiting(seconds: float) -> None:
        try:
            cloud.provision()
        except ClientError:
            refused.append(dict(cloud.weights))
        wait(seconds)

    cloud.pass_time = waiting  # type: ignore[method-assign]
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
    cloud.release("2")
    assert sorted(cloud.versions) == ["2", "5", "6", "7"]


kinds = st.sampled_from(tuple(TROUBLE))
#: At which change the process ends, and whether after it; 0 is never.
crashes = st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=2)


@settings(max_examples=300)
@given(st.lists(st.tuples(kinds, crashes), min_size=1, max_size=6), st.sampled_from((0, 60)))
def test_whatever_is_released_and_wherever_it_is_killed(
    releases: list[tuple[str, list[tuple[int, bool]]]], warm_seconds: int
) -> None:
    cloud, good = FakeAws(), "1"
    cloud.warm_seconds = warm_seconds
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
            assert failed == (kind not in ("good", "" if warm_seconds else "cold"))
            assert not cloud.weights
            assert cloud.live == (good if failed else version)
        good = cloud.live
        newest = sorted(cloud.versions, key=int)[-KEEP:]
        assert {good, *newest[-1:]} <= cloud.versions.keys()
        looks = 1 + len(ends)  # each run gives the version its share until the first look
        share = looks * tap_stack.WATCH_SECONDS * PERCENT / 100
        assert not TROUBLE[kind] or cloud.served[version] <= share * 1.000_001
    assert cloud.versions[cloud.live] in ("good", "" if warm_seconds else "cold")


# The provider, as the engine ships it


def pickled(seed: int) -> str:
    """The provider as a program that runs as __main__ registers it."""
    script = (
        "import runpy; from pulumi.dynamic.dynamic import serialize_provider\n"
        "import sys; import types; main = types.ModuleType('__main__'); sys.modules['__main__'] = main\n"
        "source = open('tap_stack.py').read().rpartition('if __name__')[0]\n"
        "main.__file__ = 'tap_stack.py'\n"
        "exec(compile(source, 'tap_stack.py', 'exec'), main.__dict__)\n"
        "sys.stdout.write(serialize_provider(main.PortableProvider()))\n"
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
    provider = dill.loads(base64.b64decode(serialize_provider(PortableProvider())))  # noqa: S301
    provider.cloud = FakeAws()
    provider.client = lambda service, inputs: provider.cloud
    provider.sleep = provider.cloud.pass_time
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
    assert (created.id, created.outs["version"], cloud.smoked) == (f"{ARN}:live", "1", ["1"])
    new = cloud.publish("good")
    assert shipped.update(created.id, created.outs, cloud.inputs(new)).outs["version"] == new
    cloud.live = "1"  # by hand
    assert shipped.read(created.id, cloud.inputs(new)).outs["version"] == "1"

    def not_found(**_: Any) -> Any:
        raise cloud.exceptions.ResourceNotFoundException

    cloud.get_alias = not_found
    assert not shipped.read(created.id, cloud.inputs(new)).id


@pytest.mark.parametrize("where", ["as __main__", "as an imported module"])
def test_the_provider_is_text_and_no_bytecode(where: str) -> None:
    text = pickled(1) if where == "as __main__" else serialize_provider(PortableProvider())
    operations = list(pickletools.genops(base64.b64decode(text)))
    strings = [arg for _, arg, _ in operations if isinstance(arg, str)]
    assert strings[:2] == ["builtins", "eval"]  # the only global that it names, and
    assert strings[2].startswith("(lambda names: exec(")  # a source
    assert len(strings) == 3
    assert not any(isinstance(arg, bytes) for _, arg, _ in operations)
    assert [
        op.name for op, _, _ in operations if op.name in ("GLOBAL", "STACK_GLOBAL", "INST")
    ] == ["STACK_GLOBAL"]
