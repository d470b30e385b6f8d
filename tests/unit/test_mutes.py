"""Mute rules of the local cloud: when they mute, and what is refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from ministack.services import cloudwatch

from taplocal.server import alarms, mutes


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def rule(expression: str, duration: str = "PT1H", **more: Any) -> dict[str, Any]:
    schedule = {"Expression": expression, "Duration": duration, **more.pop("schedule", {})}
    return {"Name": "it", "Rule": {"Schedule": schedule}, **more}


@pytest.mark.parametrize(
    ("now", "state"),
    [
        ("2026-12-06T03:59:59", "SCHEDULED"),
        ("2026-12-06T04:00:00", "ACTIVE"),
        ("2026-12-06T04:59:59", "ACTIVE"),
        ("2026-12-06T05:00:00", "EXPIRED"),
    ],
)
def test_a_rule_mutes_once(now: str, state: str) -> None:
    assert mutes.status(rule("at(2026-12-06T04:00)"), seconds(now)) == state
    berlin = rule("at(2026-12-06T05:00)", schedule={"Timezone": "Europe/Berlin"})
    assert mutes.status(berlin, seconds(now)) == state


@pytest.mark.parametrize(
    ("now", "state"),
    [
        ("2026-12-06T01:59:59", "SCHEDULED"),  # a Sunday
        ("2026-12-06T02:00:00", "ACTIVE"),
        ("2026-12-08T13:59:59", "ACTIVE"),
        ("2026-12-08T14:00:00", "SCHEDULED"),
        ("2026-12-13T02:00:00", "ACTIVE"),
    ],
)
def test_a_rule_mutes_again_and_again(now: str, state: str) -> None:
    every = rule("cron(0 2 * * SUN)", "P2DT12H")
    assert mutes.status(every, seconds(now)) == state
    assert mutes.status({**every, "ExpireDate": seconds(now)}, seconds(now)) == "EXPIRED"
    later = {**every, "StartDate": seconds(now) + 1}
    assert mutes.status(later, seconds(now)) == "SCHEDULED"


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Asks CloudWatch; returns status and answer."""
    for name in ("handle_request", "get_state", "load_persisted_state"):
        monkeypatch.setattr(cloudwatch, name, getattr(cloudwatch, name))
    monkeypatch.setattr(cloudwatch, "_evaluate_all_alarms", lambda: None)
    monkeypatch.setitem(cloudwatch._alarms, "page", {"AlarmName": "page"})
    mutes.install()

    def asked(operation: str, **request: Any) -> tuple[int, Any]:
        headers = {"x-amz-target": f"GraniteServiceVersion20100801.{operation}"}
        body = json.dumps(request).encode()
        status, _, text = asyncio.run(cloudwatch.handle_request("POST", "/", headers, body, {}))
        return status, json.loads(text)

    yield asked
    mutes._rules.clear()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (rule("rate(1 hour)"), "neither cron"),
        (rule("at(tomorrow)"), "tomorrow"),
        (rule("cron(0 2 * *)"), "five fields"),
        (rule("at(2026-12-06T04:00)", "1 hour"), "no duration such as"),
        (rule("at(2026-12-06T04:00)", "PT"), "no duration such as"),
        (rule("at(2026-12-06T04:00)", "PT0M"), "not from PT1M"),
        (rule("at(2026-12-06T04:00)", "P15DT1M"), "not from PT1M"),
        (rule("at(2026-12-06T04:00)", schedule={"Timezone": "Mars/Base"}), "Mars/Base"),
        (rule("at(2026-12-06T04:00)", MuteTargets={"AlarmNames": ["gone"]}), "no alarm gone"),
        (rule("at(2026-12-06T04:00)", MuteTargets={"AlarmNames": ["page"] * 101}), "101 are more"),
        ({"Name": "it"}, "Rule"),
    ],
)
def test_a_rule_that_mutes_nothing_is_refused(ask: Any, wrong: dict[str, Any], why: str) -> None:
    status, answer = ask("PutAlarmMuteRule", **wrong)
    assert (status, answer["__type"]) == (400, "ValidationError")
    assert why in answer["message"]
    assert ask("ListAlarmMuteRules") == (200, {"AlarmMuteRuleSummaries": []})


def test_a_rule_is_put_told_kept_and_deleted(ask: Any) -> None:
    now = datetime.now(UTC)
    active = rule(f"at({now:%Y-%m-%dT%H:%M})", MuteTargets={"AlarmNames": ["page"]})
    assert ask("PutAlarmMuteRule", **active) == (200, {})
    _, found = ask("GetAlarmMuteRule", AlarmMuteRuleName="it")
    assert found["Rule"] == active["Rule"]
    assert found["AlarmMuteRuleArn"].endswith(":alarm-mute-rule:it")
    assert (found["Status"], found["MuteType"]) == ("ACTIVE", "ONE_TIME")
    queries: list[tuple[dict[str, Any], int]] = [
        ({"AlarmName": "page"}, 1), ({"AlarmName": "x"}, 0), ({"Statuses": ["EXPIRED"]}, 0)
    ]  # fmt: skip
    for query, count in queries:
        assert len(ask("ListAlarmMuteRules", **query)[1]["AlarmMuteRuleSummaries"]) == count
    kept = cloudwatch.get_state()
    assert ask("DeleteAlarmMuteRule", AlarmMuteRuleName="it") == (200, {})
    status, answer = ask("GetAlarmMuteRule", AlarmMuteRuleName="it")
    assert (status, answer["__type"]) == (404, "ResourceNotFoundException")
    assert ask("DeleteAlarmMuteRule", AlarmMuteRuleName="it") == (200, {})
    cloudwatch.load_persisted_state(kept)
    assert ask("GetAlarmMuteRule", AlarmMuteRuleName="it")[0] == 200


def test_a_muted_alarm_says_its_last_change_after_the_rule_if_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[tuple[str, ...]] = []
    monkeypatch.setattr(cloudwatch, "_evaluate_all_alarms", lambda: None)
    monkeypatch.setattr(cloudwatch, "_dispatch_alarm_actions", lambda _, *x: heard.append(x))
    now = [seconds("2026-12-06T04:30:00")]
    monkeypatch.setattr(time, "time", lambda: now[0])
    alarms.suppress()
    page = {"AlarmName": "page", "StateValue": "ALARM"}
    monkeypatch.setitem(cloudwatch._alarms, "page", page)
    muting = rule("at(2026-12-06T04:00)", MuteTargets={"AlarmNames": ["page"]})
    monkeypatch.setitem(mutes._rules, "it", muting)
    cloudwatch._dispatch_alarm_actions(page, "OK", "ALARM", "why")
    cloudwatch._evaluate_all_alarms()
    assert heard == []
    now[0] += 1_800
    cloudwatch._evaluate_all_alarms()
    assert heard == [("OK", "ALARM", "why")]
    cloudwatch._evaluate_all_alarms()
    assert len(heard) == 1  # once
    now[0] -= 1_800
    cloudwatch._dispatch_alarm_actions(page, "OK", "ALARM", "why")
    page["StateValue"] = "INSUFFICIENT_DATA"
    now[0] += 1_800
    cloudwatch._evaluate_all_alarms()
    assert len(heard) == 1
