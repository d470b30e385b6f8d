"""Scheduled actions of Auto Scaling groups: at their time, by the clock of this machine.

MiniStack only has their records. `StartTime` of a record is when the action is next due. What was
due while the emulator did not run is done when it runs again, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ministack.services import autoscaling, eventbridge

from taplocal.server import scaling

Json = dict[str, Any]
DAYS = {"SUN": 0, "MON": 1, "TUE": 2, "WED": 3, "THU": 4, "FRI": 5, "SAT": 6}
MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()
#: Of a recurrence, in its order: the lowest and the highest value, and their names.
FIELDS: tuple[tuple[int, int, Mapping[str, int]], ...] = (
    (0, 59, {}),
    (0, 23, {}),
    (1, 31, {}),
    (1, 12, {name: number for number, name in enumerate(MONTHS, 1)}),
    (0, 7, DAYS),  # 7 is Sunday, too
)
YEARS = 8  # between two 29ths of February at most
TIME = "%Y-%m-%dT%H:%M:%SZ"
SIZES = ("MinSize", "MaxSize", "DesiredCapacity")


def next_time(recurrence: str, zone: str, after: datetime) -> datetime | None:
    """When a recurrence, five fields of cron in a time zone, is due after a moment; None: never.

    ValueError if it is none. A day has to be one of the month's or one of the week's where both are
    restricted, as in every cron.
    """
    texts = recurrence.split()
    if len(texts) != len(FIELDS):
        raise ValueError(f"the recurrence {recurrence!r} does not have five fields")
    found = [_values(text, *field) for text, field in zip(texts, FIELDS, strict=True)]
    minutes, hours, days, months, weekdays = found
    try:
        local = ZoneInfo(zone or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError(f"there is no time zone {zone!r}") from None
    by_both = texts[2] != "*" and texts[4] != "*"

    def on(day: date) -> bool:
        of_month, of_week = day.day in days, day.isoweekday() % 7 in {x % 7 for x in weekdays}
        return day.month in months and (of_month or of_week if by_both else of_month and of_week)

    first = after.astimezone(local).date()
    for day in (first + timedelta(each) for each in range(366 * YEARS)):
        for hour in sorted(hours) if on(day) else ():
            for minute in sorted(minutes):
                due = datetime.combine(day, time(hour, minute), local).astimezone(UTC)
                if due > after:
                    return due
    return None


def _values(text: str, lowest: int, highest: int, names: Mapping[str, int]) -> frozenset[int]:
    try:
        found: frozenset[int] = eventbridge._cron_field(text, lowest, highest, dict(names))
    except ValueError:
        found = frozenset()
    if not found or not found <= {*range(lowest, highest + 1)}:
        raise ValueError(f"{text!r} is no field of a recurrence from {lowest} to {highest}")
    return found


def put(parameters: Json) -> Any:
    """PutScheduledUpdateGroupAction: due at its start, or else by its recurrence."""
    now, _ = datetime.now(UTC), scaling.of(parameters)
    given = {key: autoscaling._p(parameters, key) for key in ("StartTime", "Recurrence", *SIZES)}
    try:
        if not any(given[key] for key in SIZES):
            raise ValueError("one of MinSize, MaxSize and DesiredCapacity is needed")
        zone = autoscaling._p(parameters, "TimeZone")
        by_cron = next_time(given["Recurrence"], zone, now) if given["Recurrence"] else None
        due = datetime.fromisoformat(given["StartTime"]) if given["StartTime"] else by_cron
        due = due.replace(tzinfo=due.tzinfo or UTC) if due else None
        if due is None or due <= now:
            raise ValueError("it is never due: give a StartTime in the future, or a Recurrence")
    except ValueError as error:
        return autoscaling._error("ValidationError", f"The scheduled action: {error}", 400)
    return _put({**parameters, "StartTime": due.strftime(TIME)})


_put = autoscaling._put_scheduled_action


def act(now: datetime) -> bool:
    """Does what is due in the request's scope, the oldest first; whether there was something."""
    actions, acted = autoscaling._scheduled_actions, False
    while due := sorted((x["StartTime"], key) for key, x in actions.items() if x.get("StartTime")):
        start, key = due[0]
        if start > now.strftime(TIME):
            break
        acted = True
        perform(key, actions[key], datetime.fromisoformat(start))
    return acted


def perform(key: str, action: Json, at: datetime) -> None:
    """Does an action, and says when it is due again; one that is not is deleted, as on AWS."""
    name = action["AutoScalingGroupName"]
    sizes = {size: str(action[size]) for size in SIZES if action[size] >= 0}
    recurrence, following = action["Recurrence"], None
    if name in autoscaling._asgs:
        scaling.update({"AutoScalingGroupName": name, **sizes})
        following = recurrence and next_time(recurrence, action.get("TimeZone", ""), at)
    if following and following.strftime(TIME) <= action.get("EndTime", "9"):
        action["StartTime"] = following.strftime(TIME)
    else:
        del autoscaling._scheduled_actions[key]


def install() -> None:
    """Has MiniStack answer with these operations."""
    autoscaling._ACTION_MAP["PutScheduledUpdateGroupAction"] = scaling.found_or_error(put)
