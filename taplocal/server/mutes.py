"""Alarm mute rules of CloudWatch, of which MiniStack has none.

While a rule is active its alarms go on changing and say nothing; the last change that was not said
waits in `alarms`, and is said after the rule, if it still holds ("How alarm mute rules work" of
AWS's user guide). Times are those of this machine's clock, whatever the pace of metrics.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from ministack.core.responses import get_account_id, get_region
from ministack.services import cloudwatch

from taplocal.server.schedules import next_time

Json = dict[str, Any]
SHORTEST, LONGEST = timedelta(minutes=1), timedelta(days=15)
MOST_ALARMS = 100
DURATION = re.compile(r"P(?=.)(?:(\d{1,2})D)?(?:T(?=.)(?:(\d{1,3})H)?(?:(\d{1,5})M)?)?")
EXPRESSION = re.compile(r"(at|cron)\((.{1,256})\)")


class NoRuleError(Exception):
    """There is no rule of this name."""


#: Rules by name, as they were put, with LastUpdatedTimestamp.
_rules = type(cloudwatch._alarms)()


def length(rule: Json) -> timedelta:
    """How long a rule mutes; ValueError if that is no duration from a minute to 15 days."""
    text = rule["Rule"]["Schedule"]["Duration"]
    if not (found := DURATION.fullmatch(text)):
        raise ValueError(f"Duration {text!r} is no duration such as PT1H")
    days, hours, minutes = (int(each or 0) for each in found.groups())
    duration = timedelta(days=days, hours=hours, minutes=minutes)
    if not SHORTEST <= duration <= LONGEST:
        raise ValueError(f"Duration {text!r} is not from PT1M to P15D")
    return duration


def begin(rule: Json, after: datetime) -> datetime | None:
    """When a rule begins to mute, the first time after a moment; None: never. Or ValueError."""
    schedule = rule["Rule"]["Schedule"]
    zone, found = schedule.get("Timezone", "UTC"), EXPRESSION.fullmatch(schedule["Expression"])
    if not found:
        raise ValueError(f"Expression {schedule['Expression']!r} is neither cron(...) nor at(...)")
    kind, text = found.groups()
    if kind == "cron":
        return next_time(text, zone, after)
    local = datetime.strptime(text, "%Y-%m-%dT%H:%M").replace(tzinfo=ZoneInfo(zone))
    return local if local > after else None


def status(rule: Json, now: float) -> str:
    """SCHEDULED, ACTIVE or EXPIRED, at a moment in seconds since 1970."""
    at = datetime.fromtimestamp(now, UTC)
    begun = begin(rule, at - length(rule))
    if begun is None or now >= rule.get("ExpireDate", now + 1):
        return "EXPIRED"
    return "ACTIVE" if begun <= at and now >= rule.get("StartDate", 0) else "SCHEDULED"


def is_muted(alarm: Mapping[str, Any]) -> bool:
    """Whether a rule mutes an alarm now."""
    name, now = alarm["AlarmName"], time.time()
    return any(name in targets(x) and status(x, now) == "ACTIVE" for x in _rules.values())


def targets(rule: Json) -> list[str]:
    """The names of the alarms that a rule mutes."""
    return list(rule.get("MuteTargets", {}).get("AlarmNames", ()))


def put(asked: Json) -> Json:
    """PutAlarmMuteRule."""
    alarms = targets(asked)
    unknown = {*alarms} - {*cloudwatch._alarms, *cloudwatch._composite_alarms}
    if unknown:
        raise ValueError(f"AlarmNames: there is no alarm {', '.join(sorted(unknown))}")
    if len(alarms) > MOST_ALARMS:
        raise ValueError(f"AlarmNames: {len(alarms)} are more than {MOST_ALARMS}")
    status(asked, time.time())
    _rules[asked["Name"]] = {**asked, "LastUpdatedTimestamp": time.time()}
    return {}


def told(rule: Json) -> Json:
    """What each operation says of a rule."""
    once = rule["Rule"]["Schedule"]["Expression"].startswith("at")
    arn = f"arn:aws:cloudwatch:{get_region()}:{get_account_id()}:alarm-mute-rule:{rule['Name']}"
    return {
        **{name: rule[name] for name in ("LastUpdatedTimestamp", "ExpireDate") if name in rule},
        "AlarmMuteRuleArn": arn,
        "Status": status(rule, time.time()),
        "MuteType": "ONE_TIME" if once else "RECURRING",
    }


def get(asked: Json) -> Json:
    """GetAlarmMuteRule."""
    if not (rule := _rules.get(asked["AlarmMuteRuleName"])):
        raise NoRuleError(f"There is no mute rule {asked['AlarmMuteRuleName']}")
    return {name: rule[name] for name in rule if name != "Tags"} | told(rule)


def delete(asked: Json) -> Json:
    """DeleteAlarmMuteRule, which is no error for none."""
    _rules.pop(asked["AlarmMuteRuleName"], None)
    return {}


def listed(asked: Json) -> Json:
    """ListAlarmMuteRules, all in one page."""
    found = [
        told(x)
        for x in _rules.values()
        if asked.get("AlarmName") is None or asked["AlarmName"] in targets(x)
    ]
    wanted = asked.get("Statuses") or ("SCHEDULED", "ACTIVE", "EXPIRED")
    return {"AlarmMuteRuleSummaries": [x for x in found if x["Status"] in wanted]}


OPERATIONS: Mapping[str, Callable[[Json], Json]] = {
    "PutAlarmMuteRule": put,
    "GetAlarmMuteRule": get,
    "DeleteAlarmMuteRule": delete,
    "ListAlarmMuteRules": listed,
}


def install() -> None:
    """Has CloudWatch answer the operations of rules, and keep the rules with its state."""
    handle = cloudwatch.handle_request
    get_state, load = cloudwatch.get_state, cloudwatch.load_persisted_state

    async def handled(
        method: str, path: str, headers: Mapping[str, str], body: bytes, query: Any
    ) -> Any:
        operation = headers.get("x-amz-target", "").rpartition(".")[2]
        if operation not in OPERATIONS:
            return await handle(method, path, headers, body, query)
        try:
            response = OPERATIONS[operation](json.loads(body))
        except NoRuleError as error:
            return cloudwatch._error("ResourceNotFoundException", str(error), 404, use_json=True)
        except (LookupError, ValueError) as error:  # a time zone that is none is a LookupError
            return cloudwatch._error("ValidationError", str(error), 400, use_json=True)
        cloudwatch._evaluate_all_alarms()
        return 200, {"Content-Type": "application/x-amz-json-1.0"}, json.dumps(response).encode()

    def loaded(data: Json) -> None:
        _rules.update((data or {}).get("mute_rules", {}))
        load(data)

    cloudwatch.handle_request, cloudwatch.load_persisted_state = handled, loaded
    cloudwatch.get_state = lambda: {**get_state(), "mute_rules": copy.deepcopy(_rules)}
