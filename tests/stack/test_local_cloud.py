"""The local cloud takes whatever the program registers: each type has a handler, each input is known to it."""

from __future__ import annotations

import gc
import json
from itertools import combinations
from pathlib import Path

import pytest

import tap_stack
from taplocal.resources import handler_of
from tests.stack.conftest import graph_of, graph_of_program

SUBSETS = [some for n in (1, 2, 3) for some in combinations(tap_stack.SYSTEMS, n)]


@pytest.mark.parametrize("systems", SUBSETS, ids="-".join)
def test_every_input_of_every_resource_has_a_handler(env: str, systems: tuple[str, ...]) -> None:
    more = ("files_analytics", "files_events", "files_malware_protection")
    graph = graph_of(env, systems=json.dumps(systems), **dict.fromkeys(more, "true"))
    assert len(graph.custom()) > 20
    for each in graph.custom():
        handler_of(each.type, each.name).check(each.name, each.inputs)


PROGRAM = """
import pulumi

class Large:
    pass

class Component(pulumi.ComponentResource):
    def __init__(self) -> None:
        super().__init__("test:Component", "component", {}, None)

def main() -> None:
    Component()

LARGE = Large()
main()
"""


def test_nothing_is_left_of_a_program_that_has_run(tmp_path: Path) -> None:
    assert graph_of_program(tmp_path, PROGRAM).resources
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each).__name__ == "Large"]
