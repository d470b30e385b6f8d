"""Scheduled actions of groups: when they are due, and what they do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ministack.core.responses import request_scope
from ministack.services import autoscaling

from taplocal.server import scaling, schedules
from taplocal.server.schedules import next_time

NOW = datetime(2026, 11, 28, 18, 30, tzinfo=UTC)  # a Saturday


@pytest.mark.parametrize(
    ("recurrence", "zone", "expected"),
    [
        ("*/15 * * * *", "", "2026-11-28T18:45"),
        ("30 18 * * *", "", "2026-11-29T18:30"),  # not this moment again
        ("0 8 * * 1-5", "", "2026-11-30T08:00"),
        ("0 8 * * MON", "", "2026-11-30T08:00"),
        ("0 8 * * 7", "", "2026-11-29T08:00"),  # 0 and 7 are Sunday
        ("0 8 * * 0", "", "2026-11-29T08:00"),
        ("30 0 1 1,6,12 *", "", "2026-12-01T00:30"),
        ("0 0 13 * 5", "", "2026-12-04T00:00"),  # the 13th, and each Friday
        ("0 0 13 dec *", "", "2026-12-13T00:00"),
        ("0 0 29 2 *", "", "2028-02-29T00:00"),
        ("0 8 * * *", "Europe/Berlin", "2026-11-29T07:00"),
        ("0 8 1 7 *", "Europe/Berlin", "2027-07-01T06:00"),  # summer time
        ("30 23 * * *", "America/New_York", "2026-11-29T04:30"),  # still Saturday there
        ("30 2 28 3 *", "Europe/Berlin", "2027-03-28T01:30"),  # an hour that is left out
    ],
)
def test_the_next_time_is_that_of_cron(recurrence: str, zone: str, expected: str) -> None:
    found = next_time(recurrence, zone, NOW)
    assert found and found.strftime("%Y-%m-%dT%H:%M") == expected


def test_what_never_comes_or_is_none_is_told() -> None:
    assert next_time("0 0 30 2 *", "", NOW) is None
    for recurrence in ("0 8 * *", "0 24 * * *", "x 8 * * *", "0 8 * * 1-9", "5-1 * * * *"):
        with pytest.raises(ValueError, match="recurrence"):
            next_time(recurrence, "", NOW)
    for zone in ("Mars/Base", "../etc/passwd"):
        with pytest.raises(ValueError, match="there is no time zone"):
            next_time("0 8 * * *", zone, NOW)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The record of a group with min 0, max 4, desired 2, in a region of its own."""
    monkeypatch.setattr(autoscaling, "_reconcile_instances", scaling.resize)
    with request_scope("000000000000", "eu-north-1"):
        name = {"AutoScalingGroupName": "web"}
        sizes = {"MinSize": 0, "MaxSize": 4, "DesiredCapacity": 2}
        autoscaling._asgs["web"] = {**name, **sizes, "TargetGroupARNs": ["arn"], "Instances": []}
        yield autoscaling._asgs["web"]
        autoscaling._asgs.clear()
        autoscaling._scheduled_actions.clear()


def put(**given: str) -> str:
    """The answer to a new action."""
    named = {"AutoScalingGroupName": "web", "ScheduledActionName": given.get("Name", "a")}
    status, _, body = scaling.found_or_error(schedules.put)({**named, **given})
    return "" if status == 200 else str(body)


def sizes(group: dict[str, Any]) -> list[int]:
    return [group[each] for each in schedules.SIZES]


def starts() -> dict[str, str]:
    actions = autoscaling._scheduled_actions.values()
    return {each["ScheduledActionName"]: each["StartTime"] for each in actions}


def test_actions_are_done_in_order_and_due_again(group: dict[str, Any]) -> None:
    now = datetime.now(UTC)
    assert not put(Name="up", Recurrence="0 8 * * *", MinSize="1", MaxSize="6", DesiredCapacity="3")
    assert not put(Name="down", Recurrence="0 20 * * *", MaxSize="1")
    assert starts() == {
        name: next_time(f"0 {hour} * * *", "", now).strftime(schedules.TIME)  # type: ignore[union-attr]
        for name, hour in (("up", 8), ("down", 20))
    }
    assert not schedules.act(now)
    assert sizes(group) == [0, 4, 2]
    morning = next_time("0 8 * * *", "", now + timedelta(days=1))
    assert morning
    assert schedules.act(morning)  # of what was due meanwhile, too, this is the last
    assert sizes(group) == [1, 6, 3]
    assert schedules.act(morning + timedelta(hours=12))
    assert sizes(group) == [1, 1, 1]
    assert schedules.act(morning + timedelta(days=3))  # the machine slept over an evening
    assert sizes(group) == [1, 6, 3]
    assert starts()["up"] == (morning + timedelta(days=4)).strftime(schedules.TIME)


def test_an_action_has_a_start_and_an_end(group: dict[str, Any]) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    text = soon.strftime(schedules.TIME)
    assert not put(Name="once", StartTime=text, DesiredCapacity="4")
    end = (soon + timedelta(minutes=90)).strftime(schedules.TIME)
    often = {"StartTime": text, "EndTime": end, "Recurrence": "0 * * * *"}
    assert not put(Name="often", MinSize="1", **often)
    assert starts() == {"once": text, "often": text}
    assert schedules.act(soon)
    assert sizes(group) == [1, 4, 4]
    assert starts().keys() == {"often"}  # an action of one time is gone
    assert schedules.act(soon + timedelta(hours=1))
    schedules.act(soon + timedelta(days=1))
    assert not starts()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"Recurrence": "0 8 * * *"}, "one of MinSize, MaxSize and DesiredCapacity"),
        ({"MinSize": "1"}, "it is never due"),
        ({"MinSize": "1", "StartTime": "2020-01-01T00:00:00Z"}, "it is never due"),
        ({"MinSize": "1", "StartTime": "soon"}, "soon"),
        ({"MinSize": "1", "Recurrence": "0 8 30 2 *"}, "it is never due"),
        ({"MinSize": "1", "Recurrence": "8"}, "five fields"),
        ({"MinSize": "1", "Recurrence": "0 8 * * *", "TimeZone": "Mars"}, "no time zone"),
        ({"AutoScalingGroupName": "other", "MinSize": "1"}, "not found"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(
    group: dict[str, Any], given: dict[str, str], expected: str
) -> None:
    assert expected in put(**given)
    assert not starts()
