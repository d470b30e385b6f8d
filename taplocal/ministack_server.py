"""MiniStack as the local cloud runs it, by its path: with two things that only AWS does.

Lambda queues asynchronous events, gives them to a bounded number of functions, and does not count
being throttled as an attempt. MiniStack starts a process for every event at once, so that a burst
of uploads would start hundreds, and drops an event that finds no free one.

A `*` in a policy stands for any characters. In MiniStack's it stands for none that end a line,
which S3 takes in keys.
"""

from __future__ import annotations

import contextvars
import functools
import os
import queue
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ministack.app import main
from ministack.core import iam_evaluator
from ministack.services import lambda_svc

WORKERS = 2 * (os.cpu_count() or 1)  # events at work at once; each is a process of 50 MiB
RETRY_SECONDS = (1, 2)  # AWS waits one minute, then two
THROTTLED_SECONDS = 0.5


@dataclass(order=True)
class Event:
    """An event that waits, and when it may be tried."""

    due: float
    attempt: int
    function: Mapping[str, Any] = field(compare=False)
    payload: Any = field(compare=False)
    context: contextvars.Context = field(compare=False)
    since: float = field(compare=False)


class EventQueue:
    """Events in the order in which they are due, worked off by a few threads."""

    def __init__(self) -> None:
        self._events: queue.PriorityQueue[Event] = queue.PriorityQueue()
        for _ in range(WORKERS):
            threading.Thread(target=self._work, daemon=True).start()

    def put(self, function: Mapping[str, Any], payload: Any) -> None:
        """Takes the place of MiniStack's invoke_async_with_retry."""
        now = time.monotonic()
        self._events.put(Event(now, 1, function, payload, contextvars.copy_context(), now))

    def _work(self) -> None:
        while True:
            event = self._events.get()
            wait = event.due - time.monotonic()
            if wait > 0:
                self._events.put(event)
                time.sleep(min(wait, 0.05))
            else:
                event.context.run(self._try, event)

    def _try(self, event: Event) -> None:
        config = event.function["config"]
        account, region = lambda_svc._account_region_from_function_config(config)
        lambda_svc._request_account_id.set(account)
        lambda_svc._request_region.set(region)
        result = lambda_svc._execute_function(event.function, event.payload)
        name = config["FunctionName"]
        if not result.get("error") or name not in lambda_svc._functions:
            return
        settings = lambda_svc._functions[name].get("event_invoke_config") or {}
        throttled = bool(result.get("throttle"))
        young = time.monotonic() - event.since < settings.get("MaximumEventAgeInSeconds", 21_600)
        if young and (throttled or event.attempt <= settings.get("MaximumRetryAttempts", 2)):
            self._again(event, throttled)
            return
        destination = settings.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination")
        if destination:
            lambda_svc._route_async_failure(destination, name, event.payload, result)

    def _again(self, event: Event, throttled: bool) -> None:
        wait = THROTTLED_SECONDS if throttled else RETRY_SECONDS[event.attempt - 1]
        event.due = time.monotonic() + wait
        event.attempt += not throttled
        self._events.put(event)


def match_newlines_too() -> None:
    """Lets a * in a policy match every character."""
    original = iam_evaluator._fnmatch_compile

    @functools.cache
    def compiled(pattern: str, ignore_case: bool) -> re.Pattern[str]:
        found = original(pattern, ignore_case)
        return re.compile(found.pattern, found.flags | re.DOTALL)

    iam_evaluator._fnmatch_compile = compiled


if __name__ == "__main__":
    match_newlines_too()
    lambda_svc.invoke_async_with_retry = EventQueue().put
    main()
