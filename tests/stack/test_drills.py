"""Each alarm of the program has a drill, each drill its row, and the runbook says what it does."""

from __future__ import annotations

import re

import pytest

from tests.local.drills import DRILLS, REPAIRS, RUNBOOK, THERE, Drill, Repair
from tests.stack.conftest import ENVIRONMENTS, Graph, graph_of
from tests.stack.test_monitoring import with_all
from tests.stack.test_runbook import parts


def alarms(graph: Graph, env: str) -> set[str]:
    """The keys of the alarms, of each NAT gateway as of the first one."""
    found = [x.inputs["name"] for x in graph.of("MetricAlarm")]
    found += [x.inputs["alarmName"] for x in graph.of("CompositeAlarm")]
    keys = (x.removeprefix("tap-stack-").removesuffix(f"-{env}") for x in found)
    return {re.sub(r"^nat-\d+-", "nat-0-", key) for key in keys}


def drilled() -> list[str]:
    return [key for drill in DRILLS.values() for key in drill.alarms]


def test_each_alarm_has_one_drill() -> None:
    program = set[str]()
    for env in ENVIRONMENTS:
        program |= alarms(with_all(env), env)
    program |= alarms(graph_of("dev", files_concurrency="0"), "dev")
    program |= alarms(graph_of("dev", **THERE), "dev")
    assert program - {*drilled()} == set(), "these alarms have no drill: tests/local/drills.py"
    assert {*drilled()} - program == set(), "these alarms are gone"
    assert len(drilled()) == len({*drilled()})


def table(heading: str) -> list[list[str]]:
    """The rows of a table of docs/operations.md, without its head."""
    _, _, rest = RUNBOOK.read_text().partition(f"<!-- {heading} -->\n")
    lines = rest.partition("<!-- end -->")[0].splitlines()[2:]
    return [line.strip("| ").split(" | ") for line in lines]


def test_each_drill_has_its_rows() -> None:
    """`make drill` writes them: a new drill is run before it is committed."""
    rows = {row[0]: [row[1], row[4]] for row in table("drills")}
    assert rows == {
        key: [drill.forced, drill.recovered] for drill in DRILLS.values() for key in drill.alarms
    }


def test_each_recovery_has_its_row_and_loses_nothing() -> None:
    rows = table("recoveries")
    assert [row[:2] for row in rows] == [[x.broken, x.recovered] for x in REPAIRS.values()]
    assert [row for row in rows if not row[2].startswith("nothing")] == []


@pytest.mark.parametrize("drill", DRILLS.values(), ids=DRILLS)
def test_a_drill_is_recovered_by_what_its_alarms_sections_say_to_do(drill: Drill) -> None:
    text = "\n".join(dict(parts(key)).get("Do", "") for key in drill.alarms)
    for command in re.findall("`(.+?)`", drill.recovered):
        assert command in text, f"not in the sections {', '.join(drill.alarms)}"


@pytest.mark.parametrize("repair", REPAIRS.values(), ids=REPAIRS)
def test_a_recovery_is_described(repair: Repair) -> None:
    text = re.sub(r"<!-- (\w+) -->.*?<!-- end -->", "", RUNBOOK.read_text(), flags=re.DOTALL)
    for command in re.findall("`(.+?)`", repair.recovered):
        assert command in text
