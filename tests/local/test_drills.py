"""A sample of `make drill`: an alarm is forced, seen, and ended as the runbook says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from taplocal import session
from tests.local import drills
from tests.local.conftest import ROOT
from tests.local.drills import DRILLS, REPAIRS, DrillFailed, Site

SAMPLE = ("table-denied", "bad-release", "events-denied", "claimed-concurrency")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack on a local cloud of its own, as its minutes pass faster."""
    folder = tmp_path_factory.mktemp("drills")
    try:
        yield drills.deployed(folder, {})
    finally:
        session.down(ROOT, None, folder=folder, report=lambda step: None)


def test_an_alarm_is_seen_and_ends(site: Site) -> None:
    said: list[str] = []
    for name in SAMPLE:
        results = [*drills.perform(site, DRILLS[name], said.append)]
        assert [each.alarm for each in results] == [*DRILLS[name].alarms]
        assert {each.topic for each in results} <= {
            f"tap-stack-{x}-dev" for x in ("alerts", "pages")
        }
    assert drills.section("api-5xx") in "\n".join(said)


def test_a_condition_that_is_not_brought_about_is_no_drill(site: Site) -> None:
    idle = replace(DRILLS["bad-release"], steps=lambda _: iter([drills.nothing]), wait_seconds=2)
    with pytest.raises(DrillFailed, match="no notification of api-errors"):
        [*drills.perform(site, idle, lambda _: None)]


def test_what_is_broken_is_recovered_and_nothing_is_lost(site: Site) -> None:
    assert " nothing of " in drills.repair(site, REPAIRS["deleted-version"], lambda _: None)


def test_a_loss_is_noticed(site: Site) -> None:
    items = drills.made(site, 2)
    site.http("DELETE", next(iter(items)), 204)
    with pytest.raises(DrillFailed, match="1 of 2 items are lost"):
        drills.lost(site, items)


def test_a_wrong_name_lists_the_drills(capsys: pytest.CaptureFixture[str]) -> None:
    assert drills.main(["api-6xx"]) == 2
    said = capsys.readouterr().out
    assert said.startswith("there is no drill api-6xx") and "table-denied" in said


def test_a_run_writes_its_rows_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runbook, head = tmp_path / "operations.md", "| alarm | seen |\n| --- | --- |\n"
    runbook.write_text(f"<!-- drills -->\n{head}| b | 1 |\n| gone | 1 |\n<!-- end -->\n")
    monkeypatch.setattr(drills, "RUNBOOK", runbook)
    drills.write("drills", {"a": "| a | 2 |"}, "abc")
    assert runbook.read_text() == f"<!-- drills -->\n{head}| a | 2 |\n| b | 1 |\n<!-- end -->\n"
    result = drills.Result("api-errors", DRILLS["bad-release"], 1.26, "tap-stack-alerts-dev", 2.0)
    seen = "| api-errors | a release that does not start | 1.3 s | tap-stack-alerts-dev | "
    assert drills.row(result) == f"{seen}`aws lambda update-alias` | 2.0 s |"
    result = replace(result, recovered=None)
    assert drills.row(result) == f"{seen}`aws lambda update-alias` | not awaited |"
