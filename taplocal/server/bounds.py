"""Keeps memory and files level, however many requests come: MiniStack keeps all that happened.

Data stay as on AWS: items, objects with their versions, messages. What only tells of the past is
bounded every few seconds; the oldest goes first:

- a log group keeps its last 10,000 events, and none beyond its retention,
- a metric keeps what CloudWatch does, its values by minute: similar ones are one point,
- each of the lists in `stores` keeps 10,000 entries,
- `emulator.log`, `web.log` and `traces.jsonl` keep their second half when they have 8 MiB.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ministack.services import cloudwatch, cloudwatch_logs, cognito, eventbridge, sns

from taplocal.server import timing

LOG = logging.getLogger("bounds")
SWEEP_SECONDS = 3
MOST = 10_000  # events of a log group, points of a metric, entries of a list
VALUES = 50  # of a metric in a minute, that are told apart
RECENT_SECONDS = 10  # how long the points of a metric stay as they are
FILE_BYTES = 8 * 2**20
DAY_MS = 86_400_000


def stores() -> Iterator[Any]:
    """The other lists and dictionaries that only grow."""
    for scoped in (cloudwatch._alarm_history, eventbridge._events_log, sns._sms_messages):
        yield from list(scoped._data.values())
    # MiniStack keeps the records of events that are gone; a query makes those that it misses.
    yield from (cloudwatch_logs._log_records._data, cloudwatch_logs._queries._data)
    yield cognito._challenge_sessions._data
    yield from (cognito._refresh_tokens, cognito._pending_user_auth)


def trim(store: Any) -> None:
    """Removes the oldest entries of a list or a dictionary."""
    excess = max(0, len(store) - MOST)
    if isinstance(store, list):
        del store[:excess]
    else:
        for key in list(store)[:excess]:
            store.pop(key, None)


def trim_logs(group: dict[str, Any], now: float) -> None:
    """Removes the events of a log group that are too many or too old, and streams they empty.

    Streams go by their last event, so that one which is still written to keeps its newest events.
    """
    streams, days = group["streams"], group["retentionInDays"]
    oldest = now * 1000 - days * DAY_MS if days else 0
    found = sorted(streams.copy().items(), key=lambda each: each[1]["lastIngestionTime"] or 0)
    excess = sum(len(stream["events"]) for _, stream in found) - MOST
    for name, stream in found:  # a copy: others add streams meanwhile
        events = stream["events"]
        expired = sum(1 for _ in itertools.takewhile(lambda e: e["timestamp"] < oldest, events))
        gone = min(len(events), max(excess, expired))
        if gone <= 0:
            continue
        del events[:gone]
        excess -= gone
        if not events:
            del streams[name]


def fold(points: list[dict[str, Any]], now: float) -> None:
    """Makes similar values of a minute one point, at the time of the last; keeps the newest points.

    First equal ones; if a minute has many all the same, those that two digits do not distinguish,
    at their average. (CloudWatch's own agent tells values apart by a tenth.)
    """
    old = list(itertools.takewhile(lambda e: e["Timestamp"] < now - RECENT_SECONDS, points))
    folded = []
    for _, minute in itertools.groupby(old, lambda e: e["Timestamp"] // timing.MINUTE_SECONDS):
        exact = merged(minute, float)
        folded += exact if len(exact) <= VALUES else merged(exact, lambda x: float(f"{x:.1e}"))
    points[: len(old)] = folded[max(0, len(points) - MOST) :]


def merged(points: Iterable[dict[str, Any]], key: Callable[[float], float]) -> list[dict[str, Any]]:
    """Points whose values have the same key as one; statistic sets stay: they have no values."""
    found: dict[Any, dict[str, Any]] = {}
    for each in points:
        place = id(each) if "_stat" in each else (key(each["Value"]), each["Unit"])
        if before := found.pop(place, None):  # and it comes last, as its time is the last
            weights = before.get("Count", 1), each.get("Count", 1)
            value = each["Value"]
            if value != before["Value"]:
                value = (before["Value"] * weights[0] + value * weights[1]) / sum(weights)
            each = {**each, "Value": value, "Count": sum(weights)}
        found[place] = each
    return list(found.values())


def keep_tail(path: Path) -> None:
    """Removes the first half of a file when it is full; its writer appends."""
    if path.exists() and path.stat().st_size >= FILE_BYTES:
        with path.open("r+b") as file:
            file.seek(-FILE_BYTES // 2, os.SEEK_END)
            file.readline()  # to the end of a line
            tail = file.read()
            file.seek(0)
            file.write(tail)
            file.truncate()


def sweep() -> None:
    """Bounds everything once."""
    now = time.time()
    with cloudwatch_logs._log_events_lock:
        for group in list(cloudwatch_logs._log_groups._data.values()):
            trim_logs(group, now)
    for points in list(cloudwatch._metrics._data.values()):
        fold(points, now)
    for store in stores():
        trim(store)


def install(*files: Path) -> None:
    """Starts to bound everything, and these files."""

    def work() -> None:
        while True:
            time.sleep(SWEEP_SECONDS)
            try:
                sweep()
                for path in files:
                    keep_tail(path)
            except Exception:  # the next one may succeed
                LOG.exception("not all is bounded")

    threading.Thread(target=work, daemon=True).start()
