"""The program's registered graph, without any cloud: each environment once, recorded."""

from __future__ import annotations

import base64
import fcntl
import functools
import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cost.estimate import with_defaults
from tap_stack import INSTANCE_SERVICES
from taplocal.program import Registration, run
from taplocal.project import Project
from taplocal.recorder import ACCOUNT, REGION, Recorder

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ("dev", "staging", "prod")
GRAPHS = "TAP_STACK_GRAPHS"  # variable of the environment
#: Settings of instances that work without NAT.
ISOLATED = {
    "image_id": "ami-0123456789abcdef0",
    "interface_endpoints": ",".join(INSTANCE_SERVICES),
}
__all__ = [
    "ACCOUNT",
    "ENVIRONMENTS",
    "ISOLATED",
    "REGION",
    "ROOT",
    "Graph",
    "Recorder",
    "cloud_config",
    "graph_of",
    "graph_of_program",
    "recorded",
    "statements",
    "user_data",
    "with_defaults",
]


@dataclass(frozen=True)
class Graph:
    """What one run of the program registered."""

    resources: list[Registration]
    outputs: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> list[Registration]:
        """The resources of a type, by the last part of its token or all of it."""
        return [each for each in self.custom() if kind in (each.type, each.type.split(":")[-1])]

    def one(self, kind: str, name: str = "") -> Registration:
        """The only resource of a type, or the only one with this logical name."""
        (found,) = [each for each in self.of(kind) if name in ("", each.name)]
        return found

    def custom(self) -> list[Registration]:
        """The resources that exist in AWS."""
        return [each for each in self.resources if each.custom]


@functools.cache
def graph_of(env: str, preview: bool = False, **config: str) -> Graph:
    """The graph of an environment under some settings, recorded once for all processes of a run."""
    folder = os.environ.get(GRAPHS)
    if not folder:  # a test of another folder
        return recorded(env, preview, **config)
    asked = repr((env, preview, sorted(config.items())))
    path = Path(folder, hashlib.sha256(asked.encode()).hexdigest())
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if path.stat().st_size:
            file.seek(0)
            return pickle.load(file)  # type: ignore[no-any-return]  # noqa: S301 - written below
        graph = recorded(env, preview, **config)
        pickle.dump(graph, file)
    return graph


@pytest.fixture(scope="session", autouse=True)
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the processes of this run of the tests keep their graphs."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "graphs"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(GRAPHS, str(folder))
        yield


def recorded(env: str, preview: bool = False, **config: str) -> Graph:
    """The same of a run of its own.

    The stack files in the checkout belong to the user: no test reads them.
    """
    recorder = Recorder(preview)
    project = with_defaults(env, **{"aws:region": REGION, **config})
    outputs = run(project, recorder, preview)
    return Graph(recorder.resources, outputs)


def graph_of_program(folder: Path, program: str) -> Graph:
    """The graph of a program of its own, written into a folder."""
    (folder / "Pulumi.yaml").write_text("name: tap-stack\nmain: program.py\n")
    (folder / "Pulumi.dev.yaml").write_text("config: {}\n")
    (folder / "program.py").write_text(program)
    recorder = Recorder()
    outputs = run(Project.load(folder, "dev", {"aws:region": REGION}), recorder)
    return Graph(recorder.resources, outputs)


@pytest.fixture(params=ENVIRONMENTS)
def env(request: pytest.FixtureRequest) -> str:
    """Each environment in turn."""
    return str(request.param)


@pytest.fixture
def graph(env: str) -> Graph:
    """The graph of each environment in turn."""
    return graph_of(env)


def statements(policy: str) -> list[dict[str, Any]]:
    """The statements of a policy document."""
    return list(json.loads(policy)["Statement"])


def cloud_config(graph: Graph, name: str) -> str:
    """What cloud-init gets on the instances of a fleet."""
    template = graph.one("LaunchTemplate", f"{name}-template").inputs
    return base64.b64decode(template["userData"]).decode()


def user_data(graph: Graph, name: str) -> str:
    """The script that an instance runs at its start."""
    config = yaml.safe_load(cloud_config(graph, name))
    (file,) = config["write_files"]
    assert config["runcmd"] == [["bash", file["path"]]]
    return str(file["content"])
