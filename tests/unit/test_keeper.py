"""The emulator's keeper: what is saved, and when."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ministack.core import persistence

from taplocal import keeper as keepers
from taplocal.errors import TapLocalError
from taplocal.keeper import Keeper, kept, unsaved
from tests.unit.test_state import room_for


def request(operation: str, method: str = "POST", path: str = "/") -> dict[str, Any]:
    target = [(b"x-amz-target", f"Service_1.{operation}".encode())] if operation else []
    return {"type": "http", "method": method, "path": path, "headers": target}


def form(action: str, path: str = "/") -> tuple[dict[str, Any], bytes]:
    """A request in AWS's Query protocol, or another form."""
    kind = (b"content-type", b"application/x-www-form-urlencoded; charset=utf-8")
    return {**request("", path=path), "headers": [kind]}, f"{action}&Version=1".encode()


@pytest.mark.parametrize(
    ("asked", "changes"),
    [
        (form("Action=DescribeInstances"), False),
        (form("Action=GetRole"), False),
        (form("Action=RunInstances"), True),
        (form("Action=GetSessionToken"), True),
        (form("username=Action=DescribeInstances", "/login"), True),
        (form("Version=1&Action=DescribeInstances"), True),  # nobody writes it so
        ((request("PutItem"), b"Action=DescribeInstances"), True),
    ],
)
def test_a_form_that_only_reads_is_no_change(
    tmp_path: Path, asked: tuple[dict[str, Any], bytes], changes: bool
) -> None:
    (tmp_path / "state").mkdir()
    Keeper(tmp_path, list)._note(*asked)()
    assert (unsaved(tmp_path) is not None) is changes


@pytest.mark.parametrize(
    ("scope", "now", "later"),
    [
        (request("PutItem"), True, False),
        (request("GetItem"), False, False),
        (request("PutMetricData"), False, True),  # an agent's, each second
        (request("PutLogEvents"), False, True),
        (request("", "GET"), False, False),
        (request("", "GET", "/_aws/execute-api/x/items"), True, False),
        (request("", "PUT"), True, False),
        ({"type": "lifespan"}, False, False),
    ],
)
def test_a_change_is_announced_at_once_and_telemetry_with_the_next_one(
    tmp_path: Path, scope: dict[str, Any], now: bool, later: bool
) -> None:
    (tmp_path / "state").mkdir()
    keeper = Keeper(tmp_path, list)
    keeper._note(scope)()
    assert (unsaved(tmp_path) is not None) is now
    assert (keeper.telemetry is not None) is later


def test_a_change_that_was_announced_by_half_counts_from_its_file_s_time(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    assert unsaved(tmp_path) is None
    (tmp_path / "state/unsaved-1").write_text("2000000000")
    assert unsaved(tmp_path) == 2_000_000_000
    (tmp_path / "state/unsaved-2").touch()  # killed before it wrote the time
    os.utime(tmp_path / "state/unsaved-2", (1_500_000_000, 1_500_000_000))
    assert unsaved(tmp_path) == 1_500_000_000
    (tmp_path / "state/unsaved-2").unlink()
    (tmp_path / "state/unsaved-3").symlink_to("gone")  # as one that was saved meanwhile
    assert unsaved(tmp_path) == 2_000_000_000


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    """A keeper that has saved once."""
    monkeypatch.setattr(persistence, "PERSIST_STATE", True)
    made = Keeper(tmp_path, list)
    made.changed()
    assert made.save()
    assert kept(tmp_path)
    return made


def test_what_no_disk_had_room_for_is_saved_when_there_is_room(
    keeper: Keeper, tmp_path: Path
) -> None:
    saved = kept(tmp_path)
    with room_for(0):
        for _ in range(2):
            with pytest.raises(OSError, match="too large"):
                keeper.changed()
            assert not keeper.save()
            assert keeper.since, "it is tried again"
            assert unsaved(tmp_path)
    assert kept(tmp_path) == saved
    assert [each.name for each in keeper.state.glob("[0-9]*")] == ["1"], "halves fill the disk"
    assert keeper.save()
    assert unsaved(tmp_path) is None
    assert (kept(tmp_path) or 0) > (saved or 0)


def test_who_waits_for_what_cannot_be_saved_is_told(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepers, "WAIT_SECONDS", 0.1)
    keeper.changed()
    with pytest.raises(TapLocalError, match="says why, mostly a full disk"):
        keepers.wait(tmp_path, lambda: True)
    keepers.wait(tmp_path, lambda: False)
    assert keeper.save()
    keepers.wait(tmp_path, lambda: True)


def test_a_snapshot_for_which_no_process_can_be_made_is_taken_later(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    keeper.changed()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fork", refused)
        assert not keeper.save()
    assert keeper.since
    assert unsaved(tmp_path)
    assert keeper.save()
    assert unsaved(tmp_path) is None


def test_a_snapshot_that_fails_after_the_switch_stays(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = keeper._switch

    def killed(target: Path, number: int) -> None:
        switch(target, number)
        os.abort()

    saved = kept(tmp_path) or 0
    keeper.changed()
    monkeypatch.setattr(keeper, "_switch", killed)
    assert not keeper.save()
    assert (kept(tmp_path) or 0) > saved
    assert unsaved(tmp_path), "nobody knows that it is whole"
