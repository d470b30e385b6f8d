"""`restore` of the local cloud: which snapshot a name means."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from taplocal import snapshots
from taplocal.cloud import Cloud
from taplocal.emulator import Emulator
from taplocal.errors import TapLocalError
from taplocal.snapshots import DATABASE, EVERYTHING, Snapshot
from taplocal.web import exchange

DAILY = Snapshot("tap-2026-11-28", DATABASE, "tap-dev", "2026-11-28T01:30:00+00:00")


@pytest.fixture
def restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was restored; the folder has a snapshot `one` of everything, and two of a database."""
    of_databases = [DAILY, Snapshot("one", DATABASE, "tap-dev", "2026-11-27T01:30:00+00:00")]
    emulator = SimpleNamespace(url="http://127.0.0.1:1", access_key="a", secret_key="b")
    state = tmp_path / "snapshots" / "one" / "state"
    (state / "1" / "env").mkdir(parents=True)
    for env in ("dev", "staging"):
        (state / "1" / "env" / f"{env}.json").touch()
    (state / "1" / "time.txt").write_text("1764288000")
    (state / "current").symlink_to("1")
    done: list[Any] = []

    def post(*given: Any) -> Any:
        done.append(given)
        return {"error": "it is stopped" if given[4]["snapshot"] == "one" else ""}

    cloud = Cloud(cast(Emulator, emulator), "eu-west-1")
    found = [(cloud, each) for each in of_databases]
    monkeypatch.setattr(snapshots, "_of_databases", lambda folder: iter(found))
    monkeypatch.setattr(snapshots, "_restore_everything", lambda *paths: done.append(paths))
    monkeypatch.setattr(exchange, "post", post)
    return done


def test_a_snapshot_is_found_by_its_name(tmp_path: Path, restored: list[Any]) -> None:
    assert [(x.name, x.kind, x.of) for x in snapshots.listed(tmp_path, tmp_path)] == [
        ("one", EVERYTHING, "dev, staging"),
        ("one", DATABASE, "tap-dev"),
        ("tap-2026-11-28", DATABASE, "tap-dev"),
    ]
    assert snapshots.restore(tmp_path, DAILY.name, tmp_path) == DAILY
    ((*keys, told, _),) = restored
    assert keys == ["http://127.0.0.1:1", "a", "b", "/_ministack/taplocal/web/restore"]
    expected = {"identifier": "tap-dev", "region": "eu-west-1", "snapshot": DAILY.name}
    assert told == expected


def test_of_two_with_a_name_one_is_chosen(tmp_path: Path, restored: list[Any]) -> None:
    both = r"one of everything \(dev, staging\) and one of database \(tap-dev\): .+ --kind"
    with pytest.raises(TapLocalError, match=both):
        snapshots.restore(tmp_path, "one", tmp_path)
    snapshots.restore(tmp_path, "one", tmp_path, EVERYTHING)
    assert restored == [(tmp_path, tmp_path / "snapshots" / "one")]
    with pytest.raises(TapLocalError, match="tap-dev is not restored: it is stopped"):
        snapshots.restore(tmp_path, "one", tmp_path, DATABASE)


def test_an_unknown_name_is_told_what_there_is(tmp_path: Path, restored: list[Any]) -> None:
    known = r"there is no snapshot two; there are: one \(everything\), one \(database\), tap-2026"
    with pytest.raises(TapLocalError, match=known):
        snapshots.restore(tmp_path, "two", tmp_path)
    with pytest.raises(TapLocalError, match="a snapshot has a name of letters"):
        snapshots.restore(tmp_path, "../one", tmp_path)
    assert not restored
