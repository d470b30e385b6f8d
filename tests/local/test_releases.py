"""Releases of the deployed API under load: good ones, and every kind of bad one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
from taplocal.errors import TapLocalError
from taplocal.session import Session
from tests.environments import as_struct, engine_host
from tests.local.conftest import HANG_SECONDS, ROOT

RATE = 20  # requests a second, of which a new version has a tenth
GOOD, RAISING = VERSIONS / "good.py", VERSIONS / "raising.py"
SLOW = Path(__file__).parent / "versions" / "slow.py"


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

    def live(self) -> tuple[str, Any]:
        """The version that the alias names, and its shares."""
        alias = self.session.cloud.client("lambda").get_alias(
            FunctionName=self.session.outputs["function_name"], Name="live"
        )
        return alias["FunctionVersion"], alias.get("RoutingConfig")


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


def test_a_killed_release_is_ended_by_the_guard(api: Api, requests: Counter[str]) -> None:
    api.up(GOOD, canary_percent="100")
    before, _ = api.live()
    command = [sys.executable, "-m", "taplocal", "up", "--env", "staging", "--data", str(api.data)]
    command += ["--program", str(ROOT), "--emulator", str(api.other), "-c", 'systems=["api"]']
    process = subprocess.Popen(
        [*command, "-c", "canary_minutes=40"], cwd=ROOT, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert until(lambda: api.live()[1] is not None)
    process.kill()
    process.wait()
    assert api.live()[1] is not None
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


def test_metrics_that_are_330_seconds_late_decide_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPLOCAL_METRICS_DELAY", "330")  # AWS's timing, a hundred times faster
    warm = {"provisioned_concurrency_min": "1", "provisioned_concurrency_max": "2"}
    late = Api(tmp_path / "program", tmp_path / "data", None)
    try:
        token = access.person_token(late.session, "ann@example.com")
        item = access.call(late.session, "POST", "/items", token, "{}").headers["location"]
        share = {"canary_percent": "50", "canary_minutes": "5"}
        with arriving(lambda: access.call(late.session, "GET", item, token), RATE, seen):
            for version, verdict in ((GOOD, "promote"), (RAISING, ""), (None, "promote")):
                before, _ = late.live()
                if verdict:  # promoted, or inconclusive where a busy machine serves few requests
                    assert verdict in late.up(version, **share, **warm).outputs["api_release"]
                else:
                    with pytest.raises(TapLocalError, match=r"\d+ of \d+ requests failed"):
                        late.up(version, **share, **warm)
                assert (late.live()[0] != before, late.live()[1]) == (bool(verdict), None)
    finally:
        session.down(ROOT, None, folder=tmp_path / "data", report=lambda step: None)


# The engine's own host of dynamic resources


@pytest.fixture
def host(api: Api, tmp_path: Path) -> Iterator[Any]:
    """The process that the Pulumi engine starts for dynamic resources, for this emulator."""
    with engine_host(Path(sys.executable), tmp_path, api.session.cloud.emulator) as stub:
        yield stub


def registered(api: Api) -> dict[str, Any]:
    """The rollout of the api function as the program registered it."""
    (rollout,) = (
        each for each in api.session.state.resources.values() if each.name == "api-items-rollout"
    )
    return rollout.inputs


def test_the_real_engines_host_runs_the_release(api: Api, host: Any) -> None:
    api.up(GOOD, canary_percent="100")
    plan = {**registered(api), "percent": 100}
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
    news = as_struct({**registered(api), "version": "999"})
    with pytest.raises(grpc.RpcError) as failure:
        host.Create(provider_pb2.CreateRequest(properties=news), timeout=HANG_SECONDS)
    assert "999" in failure.value.details()
    assert "File " not in failure.value.details()
