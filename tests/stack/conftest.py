"""The program's registered graph, without any cloud: each environment once, recorded."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cost.estimate import with_defaults
from taplocal.program import Registration, run
from taplocal.recorder import ACCOUNT, REGION, Recorder

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ("dev", "staging", "prod")
__all__ = [
    "ACCOUNT",
    "ENVIRONMENTS",
    "REGION",
    "ROOT",
    "Graph",
    "Recorder",
    "graph_of",
    "statements",
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
    """The graph of an environment under some settings.

    The stack files in the checkout belong to the user: no test reads them.
    """
    recorder = Recorder(preview)
    project = with_defaults(env, **{"aws:region": REGION, **config})
    outputs = run(project, recorder, preview)
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
