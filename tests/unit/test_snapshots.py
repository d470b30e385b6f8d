"""The snapshot function: which snapshots go, which stay, and what it does when RDS refuses."""

from __future__ import annotations

import datetime
import json
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tap_stack
from tap_stack import past_retention, take_snapshot
from tests.fakes import FakeContext, client_error

NOW = datetime.datetime(2026, 11, 21, 2, 0, tzinfo=datetime.UTC)
TAG = {"Key": "CreatedBy", "Value": "tap-stack-snapshots-dev"}


def snapshot(name: str, age: float, **changes: Any) -> dict[str, Any]:
    return {
        "DBSnapshotIdentifier": name,
        "SnapshotCreateTime": NOW - datetime.timedelta(days=age),
        "Status": "available",
        "SnapshotType": "manual",
        "TagList": [TAG],
        "DbiResourceId": "db-1",
        **changes,
    }


some = st.lists(
    st.builds(
        lambda number, age, status, kind: snapshot(
            f"s{number}", age, Status=status, SnapshotType=kind
        ),
        st.integers(0, 10**9),
        st.floats(0, 100),
        st.sampled_from(("available", "available", "creating", "copying", "failed")),
        st.sampled_from(("manual", "manual", "automated", "awsbackup", "shared")),
    ),
    max_size=20,
    unique_by=lambda each: each["DBSnapshotIdentifier"],
)


@given(some, st.integers(1, 40), st.integers(1, 10))
def test_only_whole_manual_snapshots_past_their_days_go_and_never_the_newest(
    snapshots: list[dict[str, Any]], days: int, keep: int
) -> None:
    expired = set(past_retention(snapshots, NOW.timestamp(), days, keep))
    whole = [
        each
        for each in snapshots
        if each["Status"] == "available" and each["SnapshotType"] == "manual"
    ]
    failed = {
        each["DBSnapshotIdentifier"]
        for each in snapshots
        if each["Status"] == "failed" and each["SnapshotType"] == "manual"
    }
    assert failed <= expired
    expired -= failed
    assert expired <= {each["DBSnapshotIdentifier"] for each in whole}
    ages = {
        each["DBSnapshotIdentifier"]: (NOW - each["SnapshotCreateTime"]).total_seconds()
        for each in whole
    }
    stay = set(ages) - expired
    assert len(stay) >= min(keep, len(whole))
    assert all(ages[each] > days * 86_400 for each in expired)
    # Whatever stays is young, or among the newest.
    newest = sorted(ages.values())[:keep]
    assert all(ages[each] <= days * 86_400 or ages[each] <= newest[-1] for each in stay)


class FakeRDS:
    """Snapshots in two pages; what `fail` names raises."""

    def __init__(self, *snapshots: dict[str, Any]) -> None:
        self.snapshots, self.created, self.deleted = list(snapshots), [""], [""]
        self.fail: dict[str, str] = {}
        self.shared: set[str] = set()
        self.quota = 100

    def create_db_snapshot(self, **arguments: Any) -> None:
        self._maybe("CreateDBSnapshot")
        name = arguments["DBSnapshotIdentifier"]
        if name in (each["DBSnapshotIdentifier"] for each in self.snapshots):
            raise client_error("DBSnapshotAlreadyExists", "CreateDBSnapshot")
        if len(self.snapshots) >= self.quota:
            raise client_error("SnapshotQuotaExceeded", "CreateDBSnapshot")
        self.snapshots.append(snapshot(name, 0, Status="creating", TagList=arguments["Tags"]))
        self.created.append(name)

    def get_paginator(self, name: str) -> FakeRDS:
        assert name == "describe_db_snapshots"
        return self

    def paginate(self, **arguments: Any) -> list[dict[str, Any]]:
        assert arguments == {"DBInstanceIdentifier": "db", "SnapshotType": "manual"}
        half = len(self.snapshots) // 2
        return [{"DBSnapshots": self.snapshots[:half]}, {"DBSnapshots": self.snapshots[half:]}]

    def describe_db_snapshot_attributes(self, **arguments: Any) -> dict[str, Any]:
        shared = arguments["DBSnapshotIdentifier"] in self.shared
        attribute = {"AttributeName": "restore", "AttributeValues": ["1"] if shared else []}
        return {"DBSnapshotAttributesResult": {"DBSnapshotAttributes": [attribute]}}

    def delete_db_snapshot(self, **arguments: Any) -> None:
        self._maybe(f"DeleteDBSnapshot {arguments['DBSnapshotIdentifier']}")
        name = arguments["DBSnapshotIdentifier"]
        self.snapshots = [x for x in self.snapshots if x["DBSnapshotIdentifier"] != name]
        self.deleted.append(name)

    def _maybe(self, operation: str) -> None:
        if operation in self.fail:
            raise client_error(self.fail[operation], operation)


@pytest.fixture
def rds(monkeypatch: pytest.MonkeyPatch) -> FakeRDS:
    """A database with old, new, foreign and shared snapshots; three days and one are kept."""
    environment = {
        "DATABASE": "db",
        "DATABASE_ID": "db-1",
        "CREATED_BY": TAG["Value"],
        "SNAPSHOT_DAYS": "3",
        "SNAPSHOT_KEEP": "1",
        "ENVIRONMENT": "dev",
        "METRICS_NAMESPACE": "tap-stack",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fake = FakeRDS(
        snapshot("new", 1),
        snapshot("old", 5),
        snapshot("older", 6),
        snapshot("foreign", 9, TagList=[]),
        snapshot("somebody's", 9, TagList=[{**TAG, "Value": "other"}]),
    )
    monkeypatch.setattr(tap_stack, "_clients", {"rds": fake})
    monkeypatch.setattr(time, "time", NOW.timestamp)
    monkeypatch.setattr(time, "gmtime", lambda *_: NOW.timetuple())
    return fake


def test_one_is_taken_and_the_old_ones_of_its_own_go(
    rds: FakeRDS, capsys: pytest.CaptureFixture[str]
) -> None:
    result = take_snapshot({}, FakeContext())
    assert rds.created[1:] == ["db-2026-11-21"]
    assert sorted(rds.deleted[1:]) == ["old", "older"] == sorted(result["deleted"])
    line = json.loads(capsys.readouterr().out)
    assert (line["SnapshotsTaken"], line["found"]) == (1, 3)


def test_a_dry_run_changes_nothing_and_is_no_heartbeat(
    rds: FakeRDS, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted(take_snapshot({"dry_run": True}, FakeContext())["deleted"]) == ["old", "older"]
    assert rds.created == rds.deleted == [""]
    assert "SnapshotsTaken" not in json.loads(capsys.readouterr().out)


def test_what_is_shared_stays(rds: FakeRDS) -> None:
    rds.shared = {"older"}
    assert take_snapshot({}, FakeContext())["deleted"] == ["old"]


def test_one_that_cannot_be_deleted_does_not_hold_back_the_others(
    rds: FakeRDS, capsys: pytest.CaptureFixture[str]
) -> None:
    rds.fail = {"DeleteDBSnapshot old": "InvalidDBSnapshotState"}
    assert take_snapshot({}, FakeContext())["deleted"] == ["older"]
    assert "SnapshotDeleteFailures" in capsys.readouterr().out


def test_a_full_quota_is_relieved_before_a_snapshot_is_taken(rds: FakeRDS) -> None:
    rds.quota = len(rds.snapshots)
    take_snapshot({}, FakeContext())
    assert rds.created[1:] == ["db-2026-11-21"]


@pytest.mark.parametrize("error", ["DBSnapshotAlreadyExists", "InvalidDBInstanceState"])
def test_an_attempt_that_is_repeated_later_finds_the_snapshot_of_its_day(
    error: str, rds: FakeRDS, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_snapshot({}, FakeContext())
    later = NOW + datetime.timedelta(minutes=7)
    monkeypatch.setattr(time, "gmtime", lambda *_: later.timetuple())
    rds.fail = {"CreateDBSnapshot": error}  # as RDS says while the first is being created
    assert take_snapshot({}, FakeContext())["snapshot"] == "db-2026-11-21"
    assert rds.created[1:] == ["db-2026-11-21"]


def test_a_snapshot_that_failed_is_deleted_and_taken_again(rds: FakeRDS) -> None:
    rds.snapshots.append(snapshot("db-2026-11-21", 0, Status="failed"))
    assert "db-2026-11-21" in take_snapshot({}, FakeContext())["deleted"]
    assert rds.created[1:] == ["db-2026-11-21"]


@pytest.mark.parametrize(
    "others",
    [
        [],
        [snapshot("db-2026-11-21", 0, TagList=[])],
        [snapshot("db-2026-11-21", 0, DbiResourceId="db-0")],
    ],
    ids=["none", "somebody's", "a former database's"],
)
def test_a_snapshot_that_cannot_be_taken_fails_after_the_old_ones_are_gone(
    others: list[dict[str, Any]], rds: FakeRDS
) -> None:
    rds.snapshots += others
    rds.fail = {} if others else {"CreateDBSnapshot": "InvalidDBInstanceState"}
    with pytest.raises(Exception, match=r"InvalidDBInstanceState|DBSnapshotAlreadyExists"):
        take_snapshot({}, FakeContext())
    assert sorted(rds.deleted[1:]) == ["old", "older"]


@pytest.mark.parametrize("operation", ["create_db_snapshot", "describe_db_snapshot_attributes"])
def test_rds_that_stands_still_does_not_outlast_the_function(
    operation: str,
    rds: FakeRDS,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    released = threading.Event()
    monkeypatch.setattr(rds, operation, lambda **_: released.wait(60))
    context = FakeContext(tap_stack.RESERVE_SECONDS + 0.1)
    if operation == "create_db_snapshot":
        with pytest.raises(TimeoutError, match="create_snapshot"):
            take_snapshot({}, context)
    else:  # tried again the next day
        assert take_snapshot({}, context)["deleted"] == []
        assert '"SnapshotDeleteFailures": 1' in capsys.readouterr().out
        assert rds.created[1:] == ["db-2026-11-21"]
    assert not released.is_set()
    released.set()
