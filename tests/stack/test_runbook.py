"""The runbook as somebody reads it at night: each alarm's section has the same parts, is short, and
names what is there."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest

from tests.local.drills import RUNBOOK, section
from tests.stack.conftest import ENVIRONMENTS, ROOT, Graph, graph_of
from tests.stack.test_monitoring import with_all
from tests.stack.test_words import RESOURCE

PARTS = ["Means", "Look", "Do", "Undo"]
COLUMNS = 80  # of a terminal, in which `make drill` and the local cloud's page show a section
LINES = 20  # with commands, without empty ones
TEXT = RUNBOOK.read_text()
KEYS = re.findall(r"^## ([a-z0-9-]+)$", TEXT, re.MULTILINE)


def parts(key: str) -> list[tuple[str, str]]:
    """The parts of an alarm's section in their order, each with its text; what is before them has
    no name."""
    before, *found = re.split(r"^- \*\*(\w+):\*\* ", section(key), flags=re.MULTILINE)
    named = [*zip(found[::2], found[1::2], strict=True)]
    return [("", before), *named] if before else named


def commands(text: str) -> list[str]:
    """The lines of the blocks of a part, joined where they go on."""
    return re.findall(r"^ {6}(\S.*)$", text.replace("\\\n", ""), re.MULTILINE)


def graphs(text: str) -> list[tuple[str, str]]:
    """The graphs that a text names: title, name of the dashboard."""
    places = re.findall(r"graphs? (.+?) \(`(\S+)`\)", " ".join(text.split()), re.IGNORECASE)
    return [(x, where) for names, where in places for x in re.findall(r"\*([^*]+)\*", names)]


def queries(text: str) -> list[str]:
    """The saved queries that a text names."""
    return re.findall(r"query `([^`]+)`", " ".join(text.split()), re.IGNORECASE)


@cache
def environments() -> list[tuple[str, Graph]]:
    """Graphs in which each resource is that the runbook may name."""
    return [(env, with_all(env)) for env in ENVIRONMENTS] + [("dev", graph_of("dev"))]


def present(name: str, env: str) -> str:
    """A name as an environment has it."""
    return name.replace("$PROJECT", "tap-stack").replace("$ENV", env)


@cache
def names(env: str) -> set[str]:
    """The texts among the inputs of an environment's resources: names, and what contains one."""
    inputs = [x.inputs for known, graph in environments() if known == env for x in graph.resources]
    return set(re.findall(r'"((?:[^"\\]|\\.)*)"', json.dumps(inputs, default=str)))


@pytest.mark.parametrize("key", KEYS)
def test_an_alarms_section_has_its_four_parts_and_is_short(key: str) -> None:
    assert [name for name, _ in parts(key)] == PARTS
    assert all(len(text.split()) > 1 for _, text in parts(key))
    lines = [line for line in section(key).splitlines() if line]
    assert max(map(len, lines)) <= COLUMNS
    assert len(lines) <= LINES


@pytest.mark.parametrize("key", KEYS)
def test_there_is_something_to_look_at(key: str) -> None:
    look = dict(parts(key))["Look"]
    assert commands(look) or graphs(look) or queries(look)


@pytest.mark.parametrize("key", KEYS)
def test_what_is_changed_is_undone(key: str) -> None:
    of = dict(parts(key))
    changed = re.findall(r"pulumi config set (\w+)", of["Do"])
    assert not changed or "nothing to undo" not in of["Undo"], changed


def test_the_queries_of_the_runbook_are_saved() -> None:
    saved = {path.stem for path in (ROOT / "queries/logs").glob("*.txt")}
    assert {*queries(TEXT)} <= saved


def test_the_graphs_of_the_runbook_are_on_their_dashboards() -> None:
    drawn = {
        (widget["properties"]["title"], each.inputs["dashboardName"])
        for _, graph in environments()
        for each in graph.of("Dashboard")
        for widget in json.loads(each.inputs["dashboardBody"])["widgets"]
    }
    named = [each for key in KEYS for each in graphs(dict(parts(key))["Look"])]
    assert len(named) > 40
    for title, where in named:
        places = {(present(title, env), present(where, env)) for env in ENVIRONMENTS}
        assert places & drawn, (title, where)


def test_the_names_in_the_commands_of_the_runbook_are_resources() -> None:
    named = {*re.findall(RESOURCE, TEXT)}
    assert len(named) > 15
    for name in named:
        assert any(present(name, env) in names(env) for env in ENVIRONMENTS), name


def test_the_links_within_the_runbook_lead_to_its_headings() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {each.lower().replace(" ", "-") for each in headings}
    assert {*re.findall(r"\]\(#([^)]+)\)", TEXT)} <= anchors
