"""The local cloud takes whatever the program registers: each type has a handler, each input is known to it."""

from __future__ import annotations

import json
from itertools import combinations

import pytest

import tap_stack
from taplocal.resources import handler_of
from tests.stack.conftest import graph_of

SUBSETS = [some for n in (1, 2, 3) for some in combinations(tap_stack.SYSTEMS, n)]


@pytest.mark.parametrize("systems", SUBSETS, ids="-".join)
def test_every_input_of_every_resource_has_a_handler(env: str, systems: tuple[str, ...]) -> None:
    more = ("files_analytics", "files_events", "files_malware_protection")
    graph = graph_of(env, systems=json.dumps(systems), **dict.fromkeys(more, "true"))
    assert len(graph.custom()) > 20
    for each in graph.custom():
        handler_of(each.type, each.name).check(each.name, each.inputs)
