"""What the emulator keeps of the past: logs, metrics, lists, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ministack.services import cloudwatch, cloudwatch_logs

from taplocal.server import bounds

NOW = 1_800_000_000.0


def stream(last: float, events: int, age_days: float = 0) -> dict[str, Any]:
    at = round((NOW - age_days * 86_400) * 1000)
    found = [{"timestamp": at + n, "message": f"{n}"} for n in range(events)]
    return {"events": found, "lastIngestionTime": last}


def kept(group: dict[str, Any]) -> dict[str, list[str]]:
    return {
        name: [each["message"] for each in found["events"]]
        for name, found in group["streams"].items()
    }


def test_a_log_group_keeps_its_last_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST", 4)
    streams = {
        "agent": stream(3, 3),
        "old": stream(1, 3),
        "later": stream(2, 3),
        "new": stream(0, 0),
    }
    streams["new"]["lastIngestionTime"] = None  # created, not written yet
    group = {"streams": streams, "retentionInDays": None}
    bounds.trim_logs(group, NOW)
    assert kept(group) == {"agent": ["0", "1", "2"], "later": ["2"], "new": []}


def test_a_log_group_with_one_event_too_many_loses_that_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "MOST", 4)
    group = {"streams": {"a": stream(1, 5)}, "retentionInDays": None}
    bounds.trim_logs(group, NOW)
    assert kept(group) == {"a": ["1", "2", "3", "4"]}


def test_a_log_group_keeps_nothing_beyond_its_retention() -> None:
    group = {"streams": {"a": stream(1, 2, age_days=8), "b": stream(2, 2)}, "retentionInDays": 7}
    bounds.trim_logs(group, NOW)
    assert kept(group) == {"b": ["0", "1"]}
    group["streams"] = {"c": stream(1, 4, age_days=7)}
    bounds.trim_logs(group, NOW + 0.002)  # two are older than 7 days, one is exactly so old
    assert kept(group) == {"c": ["2", "3"]}


def test_no_record_of_an_event_outlives_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST", 4)
    group = {"logGroupName": "/records", "logStreamName": "a"}
    cloudwatch_logs._create_log_group(group)
    cloudwatch_logs._create_log_stream(group)
    events = [{"timestamp": round(NOW * 1000) + n, "message": f"{n}"} for n in range(6)]
    cloudwatch_logs._put_log_events({**group, "logEvents": events})
    bounds.sweep()
    messages = [each["@message"] for each in cloudwatch_logs._log_records._data.values()]
    cloudwatch_logs._delete_log_group(group)
    assert messages == ["2", "3", "4", "5"]


def point(age: float, value: float, **more: Any) -> dict[str, Any]:
    return {"Timestamp": NOW - age, "Value": value, "Unit": "None", **more}


def test_equal_values_of_a_minute_become_one_point_and_no_statistic_changes() -> None:
    statistics = {"SampleCount": 2.0, "Sum": 3.0, "Minimum": 1.0, "Maximum": 2.0}
    points = [
        point(100, 5), point(95, 5, Count=2), point(94, 7), point(90, 1, _stat=statistics),
        point(50, 5), point(5, 5), point(4, 5),
    ]  # fmt: skip
    before = cloudwatch._calc_stats(points)
    bounds.fold(points, NOW)
    assert cloudwatch._calc_stats(points) == before
    assert [(NOW - each["Timestamp"], each.get("Count", 1)) for each in points] == [
        (95, 3), (94, 1), (90, 1), (50, 1), (5, 1), (4, 1),
    ]  # fmt: skip
    again = list(points)
    bounds.fold(points, NOW)
    assert points == again


def test_many_values_of_a_minute_become_few_points_with_the_same_sum() -> None:
    points = [point(60 + n / 1000, 10 + n / 100) for n in range(5_000)]
    before = cloudwatch._calc_stats(points), cloudwatch._stat_value({}, "p99", points)
    newest_last = points[::-1]
    bounds.fold(newest_last, NOW)
    assert len(newest_last) < 200
    after = cloudwatch._calc_stats(newest_last), cloudwatch._stat_value({}, "p99", newest_last)
    for name in ("Sum", "SampleCount", "Average"):
        assert after[0][name] == pytest.approx(before[0][name])
    assert after[1] == pytest.approx(before[1], rel=0.05)


def test_a_metric_keeps_its_newest_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST", 3)
    points = [point(100 - n, n) for n in range(5)]
    bounds.fold(points, NOW)
    assert [each["Value"] for each in points] == [2, 3, 4]


def test_a_list_keeps_its_newest_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST", 2)
    entries, tokens = [1, 2, 3], {"a": 1, "b": 2, "c": 3}
    bounds.trim(entries)
    bounds.trim(tokens)
    assert (entries, list(tokens)) == ([2, 3], ["b", "c"])


def test_a_full_file_keeps_its_second_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "emulator.log"
    bounds.keep_tail(path)  # which is not there yet
    monkeypatch.setattr(bounds, "FILE_BYTES", 100)
    with path.open("ab", buffering=0) as log:
        log.write(b"".join(b"line %04d\n" % n for n in range(12)))
        bounds.keep_tail(path)
        log.write(b"next\n")
    assert path.read_text() == "line 0008\nline 0009\nline 0010\nline 0011\nnext\n"
