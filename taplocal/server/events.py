"""Lambda's queue of asynchronous events.

Lambda queues asynchronous events, invokes functions with limited concurrency, and does not count a
throttled invocation as an attempt. MiniStack starts a process for each event at once, so that a
burst of uploads would start hundreds, and drops an event that finds no free process.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ministack.services import eventbridge, lambda_svc

from taplocal.server import destinations
from taplocal.server.metrics import count
from taplocal.server.releases import qualifier_of_call
from taplocal.server.timing import MINUTE_SECONDS

LOG = logging.getLogger("events")
WORKERS = 2 * (
    os.cpu_count() or 1
)  # concurrent asynchronous invocations; each is a process of 50 MiB
RETRY_SECONDS = (1, 2)  # AWS: one minute, then two
THROTTLED_SECONDS = 0.5


@dataclass(order=True)
class Event:
    """A queued event, and when it is due."""

    due: float
    attempt: int
    function: Mapping[str, Any] = field(compare=False)
    payload: Any = field(compare=False)
    context: contextvars.Context = field(compare=False)
    since: float = field(compare=False)


class EventQueue:
    """Asynchronous events by due time, processed by a few threads."""

    def __init__(self) -> None:
        self._events: queue.PriorityQueue[Event] = queue.PriorityQueue()
        self._open: dict[int, Event] = {}  # until it is processed
        for _ in range(WORKERS):
            threading.Thread(target=self._work, daemon=True).start()

    def put(self, function: Mapping[str, Any], payload: Any) -> None:
        """Replaces MiniStack's invoke_async_with_retry."""
        now = time.monotonic()
        event = Event(now, 1, function, payload, contextvars.copy_context(), now)
        self._open[id(event)] = event
        self._events.put(event)

    def waiting(self) -> list[dict[str, Any]]:
        """The events that are not processed yet, as JSON: a snapshot has them."""
        return [
            {
                "function": each.function["config"]["FunctionName"],
                "version": each.function["config"].get("Version", "$LATEST"),
                "qualifier": each.context.get(qualifier_of_call, ""),
                "payload": each.payload,
            }
            for each in list(self._open.values())
        ]

    def restore(self, events: list[dict[str, Any]]) -> None:
        """Takes the events of a snapshot again; Lambda too delivers one twice rather than never."""
        for each in events:
            if function := lambda_svc._functions.get(each["function"]):
                qualifier_of_call.set(each.get("qualifier", ""))
                versions = function.get("versions", {})
                self.put(versions.get(each["version"], function), each["payload"])
        for function in lambda_svc._functions.values():  # a shift that the snapshot was taken in
            for alias, warm in function.get("provisioned_concurrency", {}).items():
                if warm.get("Status") == "IN_PROGRESS":
                    function["aliases"][alias].pop("RoutingConfig", None)
                    warm["Status"] = "READY"

    def _work(self) -> None:
        while True:
            event = self._events.get()
            wait = event.due - time.monotonic()
            if wait > 0:
                self._events.put(event)
                time.sleep(min(wait, 0.05))
                continue
            try:
                again = event.context.run(self._attempt, event)
            except Exception:  # as Lambda's own errors: the function may or may not have run
                LOG.exception("an event comes again")
                self._retry(event, throttled=True)
                continue
            if not again:
                del self._open[id(event)]

    def _attempt(self, event: Event) -> bool:
        """Whether the event comes again."""
        config = event.function["config"]
        account, region = lambda_svc._account_region_from_function_config(config)
        lambda_svc._request_account_id.set(account)
        lambda_svc._request_region.set(region)
        name = config["FunctionName"]
        age = round((time.monotonic() - event.since) * 60_000 / MINUTE_SECONDS)
        count("AWS/Lambda", {"FunctionName": name}, AsyncEventAge=age)
        result = lambda_svc._execute_function(event.function, event.payload)
        if not result.get("error") or name not in lambda_svc._functions:
            return False
        settings = destinations.settings(name)
        throttled = bool(result.get("throttle"))
        not_expired = time.monotonic() - event.since < settings.get(
            "MaximumEventAgeInSeconds", 21_600
        )
        again = throttled or event.attempt <= settings.get("MaximumRetryAttempts", 2)
        if again and not_expired and lambda_svc._reserved_concurrency(None, config) != 0:
            self._retry(event, throttled)
            return True
        count("AWS/Lambda", {"FunctionName": name}, AsyncEventsDropped=1)
        destinations.lose(name, event.payload, result)
        return False

    def _retry(self, event: Event, throttled: bool) -> None:
        wait = THROTTLED_SECONDS if throttled else RETRY_SECONDS[event.attempt - 1]
        event.due = time.monotonic() + wait
        event.attempt += not throttled
        self._events.put(event)


def dispatch(arn: str, payload: str) -> None:
    """Replaces EventBridge's: what a rule or a schedule invokes gets its event by the queue."""
    function, config, _ = lambda_svc._get_func_record_for_ref(arn)
    if function and config:
        record = lambda_svc._execution_record_for_config(function, config)
        lambda_svc.invoke_async_with_retry(record, json.loads(payload))


def install() -> EventQueue:
    """The queue of this process, which replaces MiniStack's threads."""
    events = EventQueue()
    lambda_svc.invoke_async_with_retry = events.put
    eventbridge._dispatch_to_lambda = dispatch
    return events
