"""The log events of an environment: each is shown once, and none is left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from taplocal.logs import Logs

Events = list[tuple[str, str, int, str]]  # group, stream, time (epoch, ms), message


class Groups:
    """The logs of an instance, as CloudWatch returns them."""

    def __init__(self) -> None:
        self.events: Events = []

    def client(self, _: str) -> Any:
        return SimpleNamespace(get_paginator=lambda _: self)

    def paginate(self, logGroupName: str, startTime: int) -> Any:
        found = [x for x in self.events if x[0] == logGroupName and x[2] >= startTime]
        names = "log_group", "logStreamName", "timestamp", "message"
        yield {"events": [dict(zip(names[1:], x[1:], strict=True)) for x in found]}


def test_equal_lines_are_all_shown_once() -> None:
    """Of a batch, which has one time; and of two files of an instance, whose streams are equal."""
    groups, logs = Groups(), Logs()
    of_type = "aws:cloudwatch/logGroup:LogGroup"
    resources = {x: SimpleNamespace(type=of_type, id=x) for x in ("/app", "/access")}
    opened: Any = SimpleNamespace(cloud=groups, state=SimpleNamespace(resources=resources))

    def shown() -> list[tuple[str, Any]]:
        return [(x["log_group"], x["message"]) for x in logs.new(opened, None)]  # type: ignore[arg-type]

    groups.events = [("/app", "i-1", 9_000, "no"), ("/app", "i-1", 9_000, "no")]
    assert shown() == [("/app", "no")] * 2
    assert shown() == []
    groups.events += [("/app", "i-1", 9_000, "no"), ("/access", "i-1", 9_000, "no")]
    assert shown() == [("/app", "no"), ("/access", "no")]
    groups.events += [("/app", "i-1", 90_000, "no"), ("/app", "i-1", 90_000, "no")]
    assert shown() == [("/app", "no")] * 2
    assert shown() == []
