"""Two Pythons: whoever deploys with another one changes nothing, and can go on from the state."""

from __future__ import annotations

import base64
import functools
import json
import pickletools
import sys
from pathlib import Path
from typing import Any

import pytest
from pulumi.runtime.proto import provider_pb2

from taplocal.session import Session
from tests.environments import (
    ROOT,
    as_struct,
    engine_host,
    interpreter,
    locked_packages,
    output_of,
)
from tests.local.conftest import HANG_SECONDS

THIS = Path(sys.executable)
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
OTHERS = [each for each in VERSIONS if each != "{}.{}".format(*sys.version_info)]
#: What is deployed, with tap_stack -> its folder.
PROGRAMS = {"as __main__": ".", "as an imported module": "examples/api_only"}
REGISTER = """
import json, sys
from pathlib import Path
from taplocal.program import run
from taplocal.project import Project
from taplocal.recorder import Recorder

graphs = []
for folder in sys.argv[1:]:
    recorder = Recorder()
    run(Project.load(Path(folder).resolve(), "dev", {}), recorder)
    graphs.append({each.urn: each.inputs for each in recorder.resources})
print(json.dumps(graphs))
"""
Graph = dict[str, dict[str, Any]]


@functools.cache
def registered(python: Path, root: Path = ROOT, seed: str = "0") -> dict[str, Graph]:
    """What the programs register under a Python, in a folder, by a seed of hashes: urn -> inputs."""
    environment = {"PYTHONPATH": str(root), "PYTHONHASHSEED": seed}
    said = output_of(python, "-c", REGISTER, *PROGRAMS.values(), cwd=root, **environment)
    return dict(zip(PROGRAMS, json.loads(said), strict=True))


def readable(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs with the texts of a pickle in its place: Pythons may write the same in other bytes."""
    if "__provider" not in inputs:
        return inputs
    operations = pickletools.genops(base64.b64decode(inputs["__provider"]))
    texts = [arg for _, arg, _ in operations if isinstance(arg, str)]
    return {**inputs, "__provider": texts}


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another Python, with the packages of the lock."""
    if not (found := interpreter(request.param)):
        pytest.skip("no other Python of this version")
    return locked_packages(tmp_path_factory.mktemp("python") / request.param, found)


@pytest.mark.parametrize("program", PROGRAMS)
def test_another_python_registers_the_same_bytes(other: Path, program: str) -> None:
    """User data, code of functions, and all else."""
    here, there = registered(THIS)[program], registered(other)[program]
    assert there.keys() == here.keys()
    for urn, inputs in here.items():
        assert readable(there[urn]) == readable(inputs), urn


def test_another_checkout_registers_the_same_bytes(tmp_path: Path) -> None:
    """In another folder, written at another time, with sets in another order: pickles too."""
    there = tmp_path / "elsewhere"
    for name in output_of(
        "git", "ls-files", "*.py", "*.y*ml", "*.txt", "queries", "scripts", cwd=ROOT
    ).split():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes((ROOT / name).read_bytes())
    graphs = registered(THIS, there, seed="1")
    assert sum("code" in each for each in graphs["as __main__"].values()) == 4
    assert graphs == registered(THIS)


@pytest.mark.parametrize("direction", ["shipped here", "shipped there"])
def test_another_python_goes_on_from_the_state(
    other: Path, direction: str, deployed: Session, tmp_path: Path
) -> None:
    writer, reader = (THIS, other) if direction == "shipped here" else (other, THIS)
    (rollout,) = (
        each for each in deployed.state.resources.values() if each.name == "api-items-rollout"
    )
    with engine_host(reader, tmp_path, deployed.cloud.emulator) as host:
        for program in PROGRAMS:
            (pickled,) = (
                inputs["__provider"]
                for urn, inputs in registered(writer)[program].items()
                if urn.endswith("-items-rollout")
            )
            olds = as_struct({**rollout.inputs, "version": "1", "__provider": pickled})
            news = as_struct({**rollout.inputs, "version": "2", "__provider": pickled})
            diff = host.Diff(provider_pb2.DiffRequest(id=rollout.id, olds=olds, news=news))
            assert diff.changes == provider_pb2.DiffResponse.DIFF_SOME
            asked = {"id": rollout.id, "properties": olds}
            read = host.Read(provider_pb2.ReadRequest(**asked), timeout=HANG_SECONDS)
            assert (read.id, read.properties["version"]) == (rollout.id, "1")
            host.Delete(provider_pb2.DeleteRequest(**asked), timeout=HANG_SECONDS)
