"""The examples as a user has them: tap_stack is installed, and the engine knows the state alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pulumi.runtime.proto import provider_pb2

from taplocal.session import Session, state_path
from taplocal.state import State
from tests.environments import ROOT, as_struct, engine_host, installed, output_of, with_packages
from tests.local.conftest import HANG_SECONDS

EXAMPLES = sorted(each for each in (ROOT / "examples").iterdir() if each.is_dir())


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


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: each.name)
def test_an_example_is_deployed_refreshed_and_destroyed(
    example: Path, user: Path, engine: Path, deployed: Session, data: Path, tmp_path: Path
) -> None:
    options = ["--program", str(example), "--data", str(tmp_path / "data"), "--json"]

    def taplocal(command: str, *more: str) -> Any:
        program = user.with_name("taplocal")
        return json.loads(output_of(program, command, *options, *more, cwd=tmp_path))

    assert taplocal("up", "--emulator", str(data))["counts"].keys() == {"created"}
    assert taplocal("up")["counts"].keys() == {"unchanged"}
    state = State(state_path(tmp_path / "data", "dev"))
    rollouts = [each for each in state.resources.values() if each.type.endswith("tap:Rollout")]
    assert rollouts
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
