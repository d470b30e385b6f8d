"""Releases of the deployed API under load: good ones, and every kind of bad one."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
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

    def __init__(self, folder: Path, data: Path, url: str):
        self.folder, self.data, self.url = folder, data, url
        self.session = self.up()

    def up(self, version: Path | None = None, **config: str) -> Session:
        """Deploys the repository's own program, or one with a version of the handler."""
        sys.modules.pop("version", None)  # of the release before, as a process of its own would
        program = write_program(self.folder, version, "staging") if version else ROOT
        return session.up(
            program, "staging", folder=self.data, emulator_url=self.url, say=lambda text: None,
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
def api(deployed: Session, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data = tmp_path_factory.mktemp("releases")
    yield Api(tmp_path_factory.mktemp("program"), data, deployed.cloud.emulator.url)
    session.down(ROOT, None, folder=data, report=lambda step: None)


@pytest.fixture(scope="module")
def path(api: Api) -> str:
    """An item, and with it a function that has started."""
    token = access.person_token(api.session, "ann@example.com")
    return access.call(api.session, "POST", "/items", token, "{}").headers["location"]


@pytest.fixture
def requests(api: Api, path: str) -> Iterator[Counter[str]]:
    """Requests that arrive during the test, by status and release."""
    token = access.person_token(api.session, "ann@example.com")

    def seen(answer: Response) -> str:
        return f"{answer.status} {answer.headers.get('x-release', '')}".strip()

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
        (SLOW, "was rolled back to {before}: .*tap-stack-api-release-duration-staging"),
        (RAISING, "was rolled back to {before}: tap-stack-api-.*errors-staging"),
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
    # Its share until the first look at the alarms: the slow and the broken one fail nobody.
    assert failed <= (RATE if version == RAISING else 0)


def test_red_alarms_hold_a_release_unless_it_goes_all_at_once(api: Api) -> None:
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
    with pytest.raises(
        TapLocalError, match=f"not begun, and {before} has the traffic.*canary_percent=100"
    ):
        api.up(GOOD)
    api.up(GOOD, canary_percent="100")
    assert int(api.live()[0]) > int(before)


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


# The engine's own host of dynamic resources


@pytest.fixture
def host(api: Api, tmp_path: Path) -> Iterator[Any]:
    """The process that the Pulumi engine starts for dynamic resources, for this emulator."""
    with engine_host(Path(sys.executable), tmp_path, api.url) as stub:
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
    assert made.id == f"{plan['function']}:live"
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
