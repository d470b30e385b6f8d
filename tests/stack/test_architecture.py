"""The picture of the architecture says what is registered, in every environment."""

from __future__ import annotations

import functools
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from taplocal.architecture import GAP_X, HEIGHT, WIDTH, Architecture, Drawing
from taplocal.program import run
from taplocal.project import Project
from taplocal.state import Deployed
from tests.stack.conftest import ENVIRONMENTS, REGION, ROOT, Recorder, with_defaults

#: All relations of dev, read one by one beside the program.
RELATIONS = """
alerts-budget tells alerts-topic
api-http invokes api-items-function
api-http trusts identity-pool
api-items-function reads api-paging-key
api-items-function reads files-table
api-items-function writes, reads api-items
api-items-function writes, reads files-uploads-bucket
api-rotation-function fails to api-rotation-dead-letters
api-rotation-function reads, writes api-paging-key
api-rotation-schedule invokes api-rotation-function
bastion-fleet-group connects to web-fleet-group
database-instance tells alerts-topic
database-snapshots-function fails to database-snapshots-dead-letters
database-snapshots-function writes, reads database-instance
database-snapshots-schedule invokes database-snapshots-function
files-deleted-events reads files-table
files-recorded-events reads files-table
files-records-function fails to files-records-dead-letters
files-records-function reads files-uploads-bucket
files-records-function reads, writes files-table
files-uploads-bucket logs to files-logs-bucket
files-uploads-bucket notifies files-records-function
storage-assets-bucket logs to storage-logs-bucket
web-balancer forwards to, connects to web-fleet-group
web-balancer logs to storage-logs-bucket
web-fleet-group connects to database-instance
"""
#: Alarms on no part's metrics: of the account, of a log, of this environment.
ELSEWHERE = {
    "api-release", "bastion-logins", "claimed-concurrency", "snapshot-missing", "synthetics", "web-certificate",
}  # fmt: skip


@functools.cache
def deployed(env: str, **config: str) -> dict[str, Deployed]:
    """What an environment registers, with what AWS would return."""
    recorder = Recorder()
    run(with_defaults(env, **{"aws:region": REGION, **config}), recorder)
    return recorder.deployed


def architecture(env: str, **config: str) -> Architecture:
    return Architecture(deployed(env, files_events="true", **config))


def test_the_relations_are_those_of_the_program() -> None:
    found = architecture("dev").edges
    assert sorted(f"{x.source} {x.verb} {x.target}" for x in found) == RELATIONS.split("\n")[1:-1]


#: What these settings add.
MORE = """
files-analytics-catalog reads files-analytics-exports-bucket
files-analytics-schedule exports files-table
files-analytics-schedule writes files-analytics-exports-bucket
files-malware-protection reads, writes files-uploads-bucket
files-scans invokes files-records-function
"""


def test_settings_add_their_relations() -> None:
    more = architecture("dev", files_analytics="true", files_malware_protection="true").edges
    added = set(more) - set(architecture("dev").edges)
    assert sorted(f"{x.source} {x.verb} {x.target}" for x in added) == MORE.split("\n")[1:-1]


def test_every_function_has_a_door_and_somewhere_to_fail_unless_its_caller_waits() -> None:
    found = architecture("prod")
    functions = {name for name, part in found.parts.items() if part.kind == "function"}
    assert len(functions) == 5
    assert functions == {x.target for x in found.edges if x.verb in ("invokes", "notifies")}
    failing = {x.source for x in found.edges if x.verb == "fails to"}
    # A walk that fails is known by its metric.
    assert functions - failing == {"api-items-function", "synthetics-function"}


def test_a_relation_goes_with_the_policy_that_allows_it() -> None:
    without = {x: each for x, each in deployed("dev").items() if "api-items-role" not in x}
    gone = set(Architecture(deployed("dev")).edges) - set(Architecture(without).edges)
    assert {(x.source, x.target) for x in gone} == {
        ("api-items-function", target)
        for target in ("api-items", "api-paging-key", "files-table", "files-uploads-bucket")
    }


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_alarm_on_a_parts_metric_is_that_parts(env: str) -> None:
    shown = [name for names in Architecture(deployed(env)).alarms.values() for name in names]
    alarms = {
        each.name.removeprefix("monitoring-"): each.inputs["name"]
        for each in deployed(env).values()
        if each.type.endswith(":MetricAlarm")
    }
    assert sorted(shown) == sorted(alarms[name] for name in alarms.keys() - ELSEWHERE)


def test_zones_are_one_part_with_their_count() -> None:
    picture = Drawing(architecture("prod")).svg("x")
    assert "3 × NAT gateway" in picture and picture.count("NAT gateway") == 1


def pictures() -> dict[str, Architecture]:
    found = {env: architecture(env) for env in ENVIRONMENTS}
    more = ("waf", "files_analytics", "files_malware_protection")
    found["with all"] = architecture("dev", **dict.fromkeys(more, "true"))
    for example in (ROOT / "examples").iterdir():
        recorder = Recorder()
        run(Project.load(example, "dev", {"aws:region": REGION}), recorder)
        found[example.name] = Architecture(recorder.deployed)
    return found


def test_every_picture_is_legible() -> None:
    for name, found in pictures().items():
        drawing = Drawing(found)
        root = ElementTree.fromstring(drawing.svg(name))  # noqa: S314 - our own
        assert drawing.cells.keys() == found.parts.keys() and found.parts, name
        places = sorted(drawing.cells.values())
        for (x1, y1), (x2, y2) in pairwise(places):
            assert x2 - x1 >= WIDTH + GAP_X or (x1 == x2 and y2 - y1 > HEIGHT), name
        for text in root.iter("{http://www.w3.org/2000/svg}text"):
            if text.get("class") in ("name", "kind"):
                assert len(str(text.text)) * 7 <= WIDTH - 18, text.text  # pixels of a letter


def test_no_relation_is_drawn_behind_a_part() -> None:
    """What runs straight between two curves lies in a gap between the boxes of its column."""
    drawing = Drawing(architecture("prod"))
    straight = 0
    for edge in drawing.architecture.edges:
        for y, x in re.findall(r" (\S+)H(\S+?)(?=C)", drawing._path(edge)):
            straight += 1
            for left, top in drawing.cells.values():
                behind = left <= float(x) <= left + WIDTH and top <= float(y) <= top + HEIGHT
                assert not behind, edge
    assert straight >= 4


def test_the_order_of_registration_changes_nothing() -> None:
    turned = Architecture(dict(reversed(deployed("dev").items())))
    assert Drawing(turned).svg("x") == Drawing(Architecture(deployed("dev"))).svg("x")
