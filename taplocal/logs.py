"""The log events of an environment, as they come."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from taplocal.session import Session
from taplocal.sources import Sources

#: Who writes -> what the names of its log groups look like.
GROUPS = {
    "requests": "/aws/vendedlogs/apis/.+",
    "functions": "/aws/lambda/.+",
    "instances": "/(?!aws/).+",
}
Json = dict[str, Any]
LATE_MS = 5_000  # an event may come after a newer one: instances send theirs in batches


def read(session: Session, writers: Iterable[str], since: int, text: str = "") -> list[Json]:
    """The events of some writers' log groups since a time (epoch, ms), each with its `log_group`.

    Oldest first; with `text`, those that have it.
    """
    wanted = re.compile("|".join(GROUPS[each] for each in writers))
    paginator = session.cloud.client("logs").get_paginator("filter_log_events")
    asked: Json = {"filterPattern": json.dumps(text)} if text else {}
    found = [
        {"log_group": each.id, **event}
        for each in session.state.resources.values()
        if each.type == "aws:cloudwatch/logGroup:LogGroup" and wanted.fullmatch(each.id)
        for page in paginator.paginate(logGroupName=each.id, startTime=since, **asked)
        for event in page["events"]
    ]
    return sorted(found, key=lambda event: event["timestamp"])


class Logs:
    """The events of functions and instances since a time (epoch, ms), each once."""

    def __init__(self, since: int = 0):
        self._since = since
        self._seen: dict[tuple[Any, ...], int] = {}  # an event -> its time

    def new(self, opened: Session, sources: Sources) -> Iterator[dict[str, Any]]:
        """What has come since the last call, oldest first; stacks with the program's lines."""
        times = Counter[tuple[Any, ...]]()  # an event has no id, and may be equal to another one
        for event in read(opened, ("functions", "instances"), self._since):
            at = event["timestamp"]
            said = event["log_group"], event["logStreamName"], at, event["message"]
            times[said] += 1
            key = (*said, times[said])
            if key not in self._seen:
                self._seen[key] = at
                self._since = max(self._since, at - LATE_MS)
                message = maybe_json(event["message"].rstrip())
                if isinstance(message, dict):
                    locate(message, sources)
                yield {"time": at, "log_group": event["log_group"], "message": message}
        self._seen = {key: at for key, at in self._seen.items() if at >= self._since}


def locate(message: Json, sources: Sources) -> None:
    """Has the stack of a message name the lines of the program."""
    if "stack" in message:
        message["stack"] = [sources.locate(each) for each in message["stack"]]


def maybe_json(text: str) -> Any:
    """The value of a JSON text; of any other the text itself."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text
