"""The examples as a user has them: tap_stack is installed, and the engine knows the state alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pulumi.runtime.proto import provider_pb2

from docs import tables
from taplocal.session import Session, state_path
from taplocal.state import State
from tests.environments import ROOT, as_struct, engine_host, installed, output_of, with_packages
from tests.local.conftest import HANG_SECONDS

ENVIRONMENTS = [
    pytest.param(each, path.name.split(".")[1], id=f"{each.name}-{path.name.split('.')[1]}")
    for each in tables.EXAMPLES
    for path in sorted(each.glob("Pulumi.*.yaml"))
]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a user, with the package installed."""
    return installed(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python that the engine starts, without tap_stack."""
    python = with_packages(tmp_path_factory.mktemp("engine") / "python")
    find = "import importlib.util as it; print(it.find_spec('tap_stack'))"
    assert output_of(python, "-c", find, cwd=python.parent) == "None\n"
    return python


def commanded(
    user: Path, folder: Path, example: Path, env: str, command: str, *arguments: str
) -> Any:
    """What a command of the local cloud prints for an environment of an example."""
    options = ["--program", str(example), "--env", env, "--data", str(folder / "data"), "--json"]
    program = user.with_name("taplocal")
    return json.loads(output_of(program, command, *arguments, *options, cwd=folder))


@pytest.mark.parametrize(("example", "env"), ENVIRONMENTS)
def test_an_example_is_deployed_refreshed_and_destroyed(
    example: Path, env: str, user: Path, engine: Path, deployed: Session, data: Path, tmp_path: Path
) -> None:
    taplocal = partial(commanded, user, tmp_path, example, env)
    assert taplocal("up", "--emulator", str(data))["counts"].keys() == {"created"}
    assert taplocal("up")["counts"].keys() == {"unchanged"}
    state = State(state_path(tmp_path / "data", env))
    rollouts = [each for each in state.resources.values() if each.type.endswith("tap:Rollout")]
    assert rollouts or example.name == "network_only"  # which has no function
    (tmp_path / "empty").mkdir()
    with engine_host(engine, tmp_path / "empty", deployed.cloud.emulator) as host:
        asked = [
            {"id": each.id, "properties": as_struct({**each.inputs, **each.outputs})}
            for each in rollouts
        ]
        for each in asked:
            read = host.Read(provider_pb2.ReadRequest(**each), timeout=HANG_SECONDS)
            assert (read.id, read.properties["version"]) == (each["id"], "1")
            host.Delete(provider_pb2.DeleteRequest(**each), timeout=HANG_SECONDS)
        taplocal("down")
        for each in asked:  # what a refresh finds now
            assert not host.Read(provider_pb2.ReadRequest(**each), timeout=HANG_SECONDS).id


def test_two_environments_share_an_account_and_no_data(
    user: Path, deployed: Session, data: Path, tmp_path: Path
) -> None:
    example = ROOT / "examples" / "two_environments"
    dev, staging = (partial(commanded, user, tmp_path, example, x) for x in ("dev", "staging"))
    for taplocal in dev, staging:
        assert taplocal("up", "--emulator", str(data))["counts"].keys() == {"created"}
    assert dev("call", "POST", "/items", '{"id": "a"}')["status"] == 201
    assert [each["id"] for each in dev("call", "GET", "/items")["body"]["items"]] == ["a"]
    assert staging("call", "GET", "/items")["body"]["items"] == []
    first, second = (x("outputs") for x in (dev, staging))
    for each in ("table_name", "user_pool_id", "api_url"):
        assert first[each] != second[each]
    for taplocal in dev, staging:
        taplocal("down")
