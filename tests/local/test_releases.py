"""Releases of the deployed API under load: good ones, and every kind of bad one."""

from __future__ import annotations

import functools
import itertools
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from botocore.exceptions import ClientError
from pulumi.runtime.proto import provider_pb2

from demo.load import arriving
from demo.releases import VERSIONS, write_program
from taplocal import access, session
from taplocal.access import Response
from taplocal.emulator import METRICS_DELAY
from taplocal.errors import TapLocalError
from taplocal.resources.awslambda import Rollout
from taplocal.session import Session
from tests.environments import as_struct, engine_host
from tests.local.conftest import HANG_SECONDS, ROOT

RATE = 20  # requests a second, of which a new version has a tenth
GOOD, RAISING = VERSIONS / "good.py", VERSIONS / "raising.py"
SLOW, COLD = (Path(__file__).parent / "versions" / name for name in ("slow.py", "cold.py"))
KILLS = int(os.environ.get("RELEASE_KILLS", "2"))


class Api:
    """The API of the staging environment alone, and what is released of it."""

    def __init__(self, folder: Path, data: Path, other: Path | None):
        self.folder, self.data = folder, data
        self.other = str(other) if other else None
        self.session = self.up()

    def up(self, version: Path | None = None, **config: str) -> Session:
        """Deploys the repository's own program, or one with a version of the handler."""
        sys.modules.pop("version", None)  # of the release before, as a process of its own would
        program = write_program(self.folder, version, "staging") if version else ROOT
        return session.up(
            program, "staging", folder=self.data, emulator=self.other, say=lambda text: None,
            report=lambda step: None,
            config={"systems": '["api"]', "canary_minutes": "20", **config},
        )[0]  # fmt: skip

    def alias(self) -> dict[str, Any]:
        """What Lambda says of the alias."""
        name = self.session.outputs["function_name"]
        found: dict[str, Any] = self.session.cloud.client("lambda").get_alias(
            FunctionName=name, Name="live"
        )
        return found

    def live(self) -> tuple[str, Any]:
        """The version that the alias names, and its shares."""
        alias = self.alias()
        return alias["FunctionVersion"], alias.get("RoutingConfig")

    def has_share_since(self, revision: str) -> bool:
        """Whether a version has a share, and not the one of this revision."""
        alias = self.alias()
        return "RoutingConfig" in alias and alias["RevisionId"] != revision

    def move(self, version: str) -> None:
        """Gives a version all the traffic, as somebody does by hand."""
        self.session.cloud.client("lambda").update_alias(
            FunctionName=self.session.outputs["function_name"], Name="live",
            FunctionVersion=version, RoutingConfig={"AdditionalVersionWeights": {}},
        )  # fmt: skip

    def release(self, version: str, **changes: Any) -> str:
        """Releases a published version, with a share of the traffic; the verdict."""
        changes = {"percent": 10, "bake_seconds": 1_200, **changes, "version": version}
        return release(self.session, "api-items-rollout", **changes)


def rollout_of(deployed: Session, name: str) -> dict[str, Any]:
    """The inputs of a rollout, as the program registered it."""
    (found,) = (each for each in deployed.state.resources.values() if each.name == name)
    return found.inputs


def release(deployed: Session, name: str, **changes: Any) -> str:
    """Does what `up` does for a rollout, with changed inputs; the verdict."""
    inputs = {**rollout_of(deployed, name), **changes}
    return str(Rollout().create(deployed.cloud, inputs)[1]["verdict"])


@pytest.fixture(scope="module")
def api(deployed: Session, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    own = tmp_path_factory.mktemp("releases")
    yield Api(tmp_path_factory.mktemp("program"), own, data)
    session.down(ROOT, None, folder=own, report=lambda step: None)


@pytest.fixture(scope="module")
def path(api: Api) -> str:
    """An item, and with it a function that has started."""
    token = access.person_token(api.session, "ann@example.com")
    return access.call(api.session, "POST", "/items", token, "{}").headers["location"]


def seen(answer: Response) -> str:
    return f"{answer.status} {answer.headers.get('x-release', '')}".strip()


@pytest.fixture
def requests(api: Api, path: str) -> Iterator[Counter[str]]:
    """Requests that arrive during the test, by status and release."""
    token = access.person_token(api.session, "ann@example.com")

    with arriving(lambda: access.call(api.session, "GET", path, token), RATE, seen) as outcomes:
        yield outcomes


def test_a_good_release_drops_no_request(api: Api, requests: Counter[str]) -> None:
    before, _ = api.live()
    api.up(GOOD)
    assert api.live() == (str(int(before) + 1), None)
    api.up()
    assert api.live() == (str(int(before) + 2), None)
    assert requests.keys() == {"200", "200 0"}


def test_a_release_that_is_all_at_once_drops_no_request(api: Api, requests: Counter[str]) -> None:
    api.up(GOOD, canary_percent="100")
    api.up(canary_percent="100")
    assert requests.keys() == {"200", "200 0"}


def test_a_release_ends_when_provisioned_concurrency_serves_the_version(
    api: Api, requests: Counter[str]
) -> None:
    warm = {"provisioned_concurrency_min": "1", "provisioned_concurrency_max": "2"}
    api.up(GOOD, **warm)
    name = {"FunctionName": api.session.outputs["function_name"]}
    functions = api.session.cloud.client("lambda")
    before, _ = api.live()
    for program, percent in ((None, "10"), (GOOD, "100")):
        api.up(program, canary_percent=percent, **warm)
        assert api.live() == (str(int(before) + 1), None)
        before, _ = api.live()
        warmth = functions.get_provisioned_concurrency_config(Qualifier="live", **name)
        assert warmth["Status"] == "READY"
    functions.update_alias(Name="live", FunctionVersion=str(int(before) - 1), **name)
    with pytest.raises(ClientError, match="Alias with weights can not be used"):
        functions.put_provisioned_concurrency_config(
            Qualifier="live", ProvisionedConcurrentExecutions=2, **name
        )
    api.up(None, **warm)  # begins while Lambda itself still shifts
    assert api.live() == (str(int(before) + 1), None)
    api.up()
    assert requests.keys() == {"200", "200 0"}


@pytest.mark.parametrize(
    ("version", "why"),
    [
        (
            VERSIONS / "broken_import.py",
            "failed its smoke test; {before} has the traffic: .*nowhere",
        ),
        (SLOW, r"was rolled back to {before}: \d+ of \d+ .*failed or took more than 2000 ms"),
        (RAISING, r"was rolled back to {before}: \d+ of \d+ requests failed"),
    ],
)
def test_a_bad_release_is_taken_back_and_says_why(
    api: Api, requests: Counter[str], version: Path, why: str
) -> None:
    before, _ = api.live()
    with pytest.raises(TapLocalError, match=why.format(before=before)):
        api.up(version, canary_minutes="120")  # long enough to meet a request for sure
    assert api.live() == (before, None)
    failed = requests.total() - requests["200"]
    # Its share until the first looks at the metrics: the slow and the broken one fail nobody.
    assert failed <= (2 * RATE if version == RAISING else 0)


def test_alarms_of_before_do_not_hold_a_release(api: Api, requests: Counter[str]) -> None:
    before, _ = api.live()
    name = api.session.outputs["function_name"]
    through = {"FunctionName": name, "Resource": f"{name}:live"}
    one = {
        "MetricName": "Errors",
        "Dimensions": [{"Name": key, "Value": value} for key, value in through.items()],
        "Value": 1,
    }
    cloudwatch = api.session.cloud.client("cloudwatch")
    cloudwatch.put_metric_data(Namespace="AWS/Lambda", MetricData=[one])
    verdict = api.up(GOOD).outputs["api_release"]
    assert int(api.live()[0]) > int(before)
    assert "-api-errors-" not in verdict  # among the alarms that did not fire


def test_kills_during_the_share_lose_no_request(api: Api, requests: Counter[str]) -> None:
    """The next release ends each of them, and the guard the last one."""
    api.up(GOOD, canary_percent="100")
    before, _ = api.live()
    command = [sys.executable, "-m", "taplocal", "up", "--env", "staging", "--data", str(api.data)]
    command += ["--program", str(ROOT), "--emulator", str(api.other), "-c", 'systems=["api"]']
    command += ["-c", "canary_minutes=40"]
    slower = {**os.environ, METRICS_DELAY: "1"}  # 24 s of watch, not 2.4: kills come before its end
    left = ""  # the revision of a share that was left behind
    for _ in range(KILLS):
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=ROOT, env=slower, stdout=quiet, stderr=quiet)
        assert until(functools.partial(api.has_share_since, left))
        time.sleep(random.uniform(0, 1))  # noqa: S311 - somewhere in the watch
        process.kill()
        process.wait()
        assert api.live()[0] == before and api.live()[1] is not None
        left = api.alias()["RevisionId"]
    assert until(lambda: api.live() == (before, None))
    api.up(canary_percent="100")
    assert int(api.live()[0]) > int(before)
    assert requests.keys() <= {"200", "200 0"}


def until(holds: Callable[[], bool]) -> bool:
    """Waits until it holds; False if it does not for a long time."""
    deadline = time.monotonic() + HANG_SECONDS
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


def test_a_share_that_was_left_behind_is_taken_back_by_the_next_release(api: Api) -> None:
    functions, name = api.session.cloud.client("lambda"), api.session.outputs["function_name"]
    api.up(GOOD, canary_percent="100")
    before, _ = api.live()
    weights = {str(int(before) - 1): 0.5}
    functions.update_alias(
        FunctionName=name, Name="live", RoutingConfig={"AdditionalVersionWeights": weights}
    )
    api.up(canary_percent="100")
    assert api.live() == (str(int(before) + 1), None)
    kept = functions.list_versions_by_function(FunctionName=name)["Versions"][1:]
    newest = [str(int(before) + n) for n in range(-3, 2)]
    assert [each["Version"] for each in kept] == newest[-len(kept) :]  # five, once there were five


@pytest.fixture(scope="module")
def versions(api: Api) -> dict[str, str]:
    """Published versions by name; "old" has the traffic."""
    found = {}
    for name, program in (("old", GOOD), ("new", None), ("bad", RAISING)):
        api.up(program, canary_percent="100")
        found[name], _ = api.live()
    api.move(found["old"])
    return found


def test_ten_releases_in_a_row_back_and_forth(
    api: Api, versions: dict[str, str], requests: Counter[str]
) -> None:
    """Each second one is a rollback, also of a rollback, and between them a bad one fails."""
    for name in itertools.islice(itertools.cycle(["new", "bad", "old", "bad"]), 10):
        before, _ = api.live()
        if name == "bad":
            with pytest.raises(TapLocalError, match=f"was rolled back to {before}"):
                api.release(versions["bad"], bake_seconds=7_200)
            assert api.live() == (before, None)
        else:
            api.release(versions[name])
            assert api.live() == (versions[name], None)
    failed = requests.total() - requests["200"] - requests["200 0"]
    assert failed <= 5 * 2 * RATE  # the shares of five bad versions, until the first looks


def test_of_two_releases_at_once_one_has_the_last_word(
    api: Api, versions: dict[str, str], requests: Counter[str]
) -> None:
    """Where nothing locks the state, as between two stacks or two people."""
    api.move(versions["old"])
    with ThreadPoolExecutor() as pool:
        first, second = (
            pool.submit(api.release, versions["new"], bake_seconds=2_400) for _ in range(2)
        )
        problems = [str(each.exception() or "") for each in (first, second)]
    assert all("given up" in each or "rolled back" in each for each in problems if each), problems
    promoted = "" in problems
    assert api.live() == (versions["new" if promoted else "old"], None)
    assert requests.keys() <= {"200", "200 0"}


def test_whoever_moves_the_alias_by_hand_has_the_last_word(
    api: Api, versions: dict[str, str], requests: Counter[str]
) -> None:
    api.move(versions["old"])
    with ThreadPoolExecutor() as pool:
        going_on = pool.submit(api.release, versions["new"], bake_seconds=7_200)
        assert until(lambda: api.live()[1] is not None)
        api.move(versions["new"])
        with pytest.raises(TapLocalError, match="the alias was moved by another"):
            going_on.result()
    assert api.live() == (versions["new"], None)
    api.move(versions["old"])  # between two releases: the next one begins from there
    assert "promoted" in api.release(versions["new"], percent=100)
    assert api.live() == (versions["new"], None)
    assert requests.keys() <= {"200", "200 0"}


def test_two_environments_are_released_at_once(
    api: Api, deployed: Session, versions: dict[str, str], requests: Counter[str]
) -> None:
    api.move(versions["old"])
    with published(deployed, "api-items-rollout", Description="another") as other:
        with ThreadPoolExecutor() as pool:
            theirs = pool.submit(release, deployed, "api-items-rollout", version=other)
            ours = pool.submit(api.release, versions["new"])
        assert "promoted all at once" in theirs.result() and "promote" in ours.result()
        assert "promoted" in release(deployed, "api-items-rollout")  # back again
    assert api.live() == (versions["new"], None)
    assert requests.keys() <= {"200", "200 0"}


def test_a_version_that_cannot_be_kept_warm_is_rolled_back(
    api: Api, requests: Counter[str]
) -> None:
    warm = {"provisioned_concurrency_min": "1", "provisioned_concurrency_max": "2"}
    api.up(None, **warm)
    before, _ = api.live()
    reason = f"rolled back to {before}: its provisioned concurrency failed: FUNCTION_ERROR_INIT"
    with pytest.raises(TapLocalError, match=reason):
        api.up(COLD, canary_percent="100", **warm)
    assert api.live() == (before, None)
    api.up(GOOD, canary_percent="100", **warm)
    assert api.live()[1] is None and api.live()[0] != before
    api.up(canary_percent="100")
    assert requests.keys() <= {"200", "200 0"}


@contextmanager
def published(deployed: Session, name: str, **changes: str) -> Iterator[str]:
    """A version of a rollout's function with a changed configuration."""
    functions, function = deployed.cloud.client("lambda"), rollout_of(deployed, name)["function"]
    before = functions.get_function_configuration(FunctionName=function)
    functions.update_function_configuration(FunctionName=function, **changes)
    try:
        yield functions.publish_version(FunctionName=function)["Version"]
    finally:
        unchanged = {key: before[key] for key in changes}
        functions.update_function_configuration(FunctionName=function, **unchanged)


@pytest.mark.parametrize(
    "name", ["api-items", "api-rotation", "files-records", "database-snapshots"]
)
def test_every_function_has_probes_that_a_broken_version_fails(
    deployed: Session, name: str
) -> None:
    name = f"{name}-rollout"
    assert "has the traffic" in release(deployed, name)
    fails = pytest.raises(TapLocalError, match=r"failed its smoke test; .* has the traffic")
    with published(deployed, name, Handler="index.nowhere") as broken, fails:
        release(deployed, name, version=broken)
    assert "has the traffic" in release(deployed, name)


@pytest.mark.parametrize("delay", [0, 60, 330])
def test_however_late_metrics_are_no_bad_version_is_promoted(
    delay: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bad version answers our own requests: only users' metrics show what is wrong."""
    monkeypatch.setenv(METRICS_DELAY, str(delay))  # AWS's timing, 100 times faster
    warm = {"provisioned_concurrency_min": "1", "provisioned_concurrency_max": "2"}
    late = Api(tmp_path / "program", tmp_path / "data", None)
    try:
        token = access.person_token(late.session, "ann@example.com")
        item = access.call(late.session, "POST", "/items", token, "{}").headers["location"]
        # A busy machine serves a fraction of the requests, and too few are inconclusive.
        share = {"canary_percent": "50", "canary_minutes": "10", "canary_inconclusive": "roll_back"}
        with arriving(lambda: access.call(late.session, "GET", item, token), RATE, seen):
            before, _ = late.live()
            with pytest.raises(TapLocalError, match=f"was rolled back to {before}: "):
                late.up(RAISING, **share, **warm)
            assert late.live() == (before, None)
            if delay == 330:
                late.up(GOOD, canary_percent="50", canary_minutes="5", **warm)
                assert late.live()[0] != before and late.live()[1] is None
    finally:
        session.down(ROOT, None, folder=tmp_path / "data", report=lambda step: None)


# The engine's own host of dynamic resources


@pytest.fixture
def host(api: Api, tmp_path: Path) -> Iterator[Any]:
    """The process that the Pulumi engine starts for dynamic resources, for this emulator."""
    with engine_host(Path(sys.executable), tmp_path, api.session.cloud.emulator) as stub:
        yield stub


def test_the_real_engines_host_runs_the_release(api: Api, host: Any) -> None:
    api.up(GOOD, canary_percent="100")
    plan = {**rollout_of(api.session, "api-items-rollout"), "percent": 100}
    version, _ = api.live()
    news = as_struct({**plan, "version": version})
    made = host.Create(provider_pb2.CreateRequest(properties=news), timeout=HANG_SECONDS)
    assert made.id == plan["function"]
    asked = {"id": made.id, "olds": made.properties, "news": news}
    assert (
        host.Diff(provider_pb2.DiffRequest(**asked)).changes == provider_pb2.DiffResponse.DIFF_NONE
    )
    back = str(int(version) - 1)  # a release of an older version is one like any other
    asked["news"] = as_struct({**plan, "version": back})
    assert (
        host.Diff(provider_pb2.DiffRequest(**asked)).changes == provider_pb2.DiffResponse.DIFF_SOME
    )
    host.Update(provider_pb2.UpdateRequest(**asked), timeout=HANG_SECONDS)
    assert api.live() == (back, None)
    read = host.Read(provider_pb2.ReadRequest(id=made.id, properties=made.properties))
    assert read.properties["version"] == back  # what `pulumi refresh` finds
    missing = as_struct({**plan, "alias": "nowhere"})
    assert not host.Read(provider_pb2.ReadRequest(id=made.id, properties=missing)).id


def test_a_failure_reaches_the_user_as_one_line(api: Api, host: Any) -> None:
    news = as_struct({**rollout_of(api.session, "api-items-rollout"), "version": "999"})
    with pytest.raises(grpc.RpcError) as failure:
        host.Create(provider_pb2.CreateRequest(properties=news), timeout=HANG_SECONDS)
    assert "999" in failure.value.details()
    assert "File " not in failure.value.details()
