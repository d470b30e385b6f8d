"""docs/faults.md: each fault has tests that pytest collects, and alarms that are there."""

from __future__ import annotations

import ast

import pytest

from docs.faults import FAULTS, Fault, named_tests
from tests.stack.conftest import ROOT, graph_of

ALL = [each for part in FAULTS.values() for each in part]


@pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.fault)
def test_a_fault_is_told_whole_and_its_tests_exist(fault: Fault) -> None:
    assert all(fault[:4])
    assert named_tests(fault)
    for name, path in named_tests(fault).items():
        body = ast.parse((ROOT / path).read_text()).body
        assert name in {each.name for each in body if isinstance(each, ast.FunctionDef)}, path


def test_each_alarm_of_a_fault_is_there() -> None:
    more = ("files_analytics", "files_events", "files_malware_protection")
    alarms = graph_of("prod", **dict.fromkeys(more, "true")).of("MetricAlarm")
    known = {each.name.removeprefix("monitoring-") for each in alarms}
    assert {key for fault in ALL for key in fault.alarms.split()} <= known


def test_no_fault_stands_twice() -> None:
    assert len({each.fault for each in ALL}) == len(ALL)


def test_the_page_says_how_many_faults_each_call_has() -> None:
    from tests.unit.test_faults import FAULTS as OF_A_CALL

    assert f" {len(OF_A_CALL)} faults of each" in (ROOT / "docs/faults.md").read_text()
